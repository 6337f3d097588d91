"""The knowledge base: documents read, split into passages, indexed and searched.

Never imports Dagster, never reads the clock or the environment; LanceDB and its kin are imported where they are used.
"""
