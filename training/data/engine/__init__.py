"""Run one step of a build on units of rows, so that each row is processed exactly once.

A unit is a fixed set of source rows in one parquet file; a worker is the code of one step in one language.

answer_schema.py: check that an answer fits the columns of its step
journal.py: the append-only file with the answers of a unit in progress
unit_files.py: the files of a unit: source, output, manifest, journal, lock
units.py: run a worker over units
executors.py: run units in local processes, on Slurm or on Ray
progress.py: progress and remaining time of a build
storage.py: store rows and hashes on disk, for steps that need all rows
"""
