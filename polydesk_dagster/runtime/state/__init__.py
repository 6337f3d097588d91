"""The one truth about how an installation is: what each service does by itself, did last, and what it waits for.

``model`` holds what there is to know, as codes and values without a sentence; ``activity`` who let a service work or
keeps it waiting; ``services`` and ``integrations`` read the state of every service and of every clinic's studiolab;
``probing`` asks the configured systems over the wire. The command, the probe of health and the pages read these and
nothing else. How it is said to people is in ``told.state``, what Dagster's tables look like in
``runtime.dagster_inside``; nothing here imports Dagster.
"""
