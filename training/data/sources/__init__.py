"""Convert sources to units of source rows: one format for all rows, sorted by id.

plan.py: section `source` of a plan
readers.py: read the records of files, folders and Hub datasets, one at a time
pictures.py: read the pictures that records name
records.py: convert a record to a source row, or say why it is rejected
rows.py: yield all rows of a source, and check their pictures
sorting.py: sort rows by id and language, find repeated ones, count
step.py: the step itself: write the units
"""
