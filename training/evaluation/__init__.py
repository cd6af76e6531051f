"""How a Maya is scored: one file a benchmark, one runner, one results format.

protocol.py: what a task is: requests, the score of one answer, rows of numbers
tasks/: the benchmarks, one file each
scoring/: how answers are read and scored
asking.py: puts the requests of tasks to one model
measures.py: what every answer is measured by
run.py: `maya evaluate`: asks the model and two baselines, and writes what follows
results.py: `results.json`, the one format of numbers
table.py: its tables, for the terminal, for cards and for the README
report/: a page of one or more evaluations, and the paired comparison of two
sheet/: some answers beside their pictures, as one image
"""
