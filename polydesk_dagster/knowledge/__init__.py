"""The knowledge base, stage by stage: which documents there are and whose (``library``, ``shelving``), opened in a
process of its own (``reader``, ``reading``, ``formats``), split into passages (``splitting``, ``text``) of which some
wait for a person (``screening``), written (``intake``, ``contents``, ``store``) into generations (``generations``,
``indexing``, ``work``, ``probing``), asked (``question``, ``searching``, ``ranking``), and decided about (``shelf``).

Here belongs what becomes of a document from its file to a cited passage, and who may be given it. Where the folder and
the index are is said in ``settings``; schedules, assets and commands only call; the assistant itself lives elsewhere.
Nothing here imports Dagster or reads the clock or the environment; LanceDB and its kin are imported in functions.
"""
