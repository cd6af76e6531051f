"""Read dataset rows of any known format, and the conversations and images in them.

json_rows.py: streams rows from JSON files
hub.py: datasets and files on the Hub; every error becomes one line
parquet.py: parquet files; every error becomes one line
tables.py: parquet files of a dataset as one table, read by row group
picture_cells.py: images in cells and in image parts of messages
conversations.py: RowReader, the one reader of a row's messages and images, for validation, building, training
open.py: loads a dataset's rows into memory and opens the storage of its images
"""
