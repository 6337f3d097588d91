"""What the managers' charts show: counted where something changed, provably equal to counting everything.

Here belong the cells, their refresh and comparison, and the figures, tables and drawings of a period, as values and
DataFrames. How they are drawn and written lives in ``told`` (``pictures``, ``report``).
"""
