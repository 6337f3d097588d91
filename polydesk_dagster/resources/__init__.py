"""What assets and jobs are handed: the only place, with the settings, that reads this installation's configuration.

Here belongs opening what is configured, once for a run. Which settings there are is ``settings``; what is done with
what was opened, the rules'.
"""
