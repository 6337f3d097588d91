"""The knowledge base, stage by stage: which documents there are (``library``), opened (``reader`` in a process of its
own, ``reading``), split into passages (``splitting``, ``text``), written (``intake``, ``contents``, ``store``) into
generations (``generations``, ``indexing``, ``probing``), and asked (``question``, ``searching``, ``ranking``).

Here belongs what becomes of a document from its file to a cited passage, and who may be given it. Where the folder and
the index are is said in ``settings``; schedules, assets and commands only call; the assistant itself lives elsewhere.
Nothing here imports Dagster or reads the clock or the environment; LanceDB and its kin are imported in functions.
"""
