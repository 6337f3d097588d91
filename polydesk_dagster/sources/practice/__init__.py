"""A practice's own data as a workbook: read as people write it, planned as every change is, and written back.

``sheets`` says what each sheet holds, ``cells`` what a cell may hold, ``reading`` finds both in a file, ``importing``
makes the plans and applies them, ``exporting`` gives what we hold in the same form. What a sheet or a heading is called
in a language stands in the catalogues; rules are handed those words.
"""
