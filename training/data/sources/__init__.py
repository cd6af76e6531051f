"""Sources -> source units: rows of one form, sorted by id.

readers.py: records of files, folders and Hub datasets, one at a time
pictures.py: the pictures that records name
records.py: a record -> a source row, or the reasons why not
external_sort.py: sorting by id on the disk
step.py: section `source` of a plan; the step
"""
