"""Rows of datasets of any known form, and the conversations in them.

json_rows.py: rows of JSON files, one at a time
hub.py: datasets and files on the Hub, with their errors in one line
parquet.py: parquet files, with their errors in one line
tables.py: parquet files of a dataset, read piece by piece
picture_cells.py: the pictures of cells and image parts
conversations.py: a row -> its messages and pictures; validating, building and training read rows with it
open.py: a dataset's rows in memory, and the place of its pictures
"""
