"""The sub-commands of ``polydesk``, one module each. Heavy imports stay inside functions: ``--help`` must be quick."""
