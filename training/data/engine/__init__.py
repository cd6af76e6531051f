"""Run one step on units of rows, so that every row is done exactly once.

answer_schema.py: whether an answer fits the columns of its step
journal.py: answers of a unit in work
unit_files.py: what stands on the disk for a unit
units.py: a worker runs over units
executors.py: units on processes, Slurm or Ray
progress.py: how far a build is
storage.py: rows and hashes on the disk, for steps that look at all rows
"""
