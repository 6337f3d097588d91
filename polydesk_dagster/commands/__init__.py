"""The sub-commands of ``polydesk``, one module each: they read arguments, call, and show what came of it.

No rule and no sentence lives here: rules are in ``clinic``, ``changes``, ``sources`` and ``knowledge``, what is said in
``told``. Heavy imports stay inside functions: ``--help`` must be quick.
"""
