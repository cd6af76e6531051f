"""Turn sources into source units: rows of one form, sorted by id.

plan.py: section `source` of a plan
readers.py: records of files, folders and Hub datasets, one at a time
pictures.py: the pictures that records name
records.py: a record -> a source row, or the reasons why not
rows.py: every row of a source, with its picture looked at
sorting.py: rows by id and language, each pair once, and counts
step.py: the step writes units
"""
