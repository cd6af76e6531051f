"""How a Maya is scored: one file a benchmark, one runner, one results format.

protocol.py: what a task is: requests, the score of one answer, rows of numbers
tasks/: the benchmarks, one file each
scoring/: how answers are read and scored
judges/: models that grade answers
asking.py: puts the requests of tasks to a model of this process
served.py: puts them to a model behind an OpenAI-compatible server
journal.py: answers kept as they come, so that none is generated twice
processes.py: the share of each of several processes
work.py: the requests of a task beside the answers that are there
measures.py: what every answer is measured by
answers.py: answers that were made before, read and matched with requests
records.py: from scored answers to rows and files
run.py: `maya evaluate`: asks the model and two baselines
rejudge.py: `maya evaluate --rejudge`: scores answers without a model
results.py: `results.json`, the one format of numbers
table.py: its tables, for the terminal, for cards and for the README
lmms_eval_maya.py: lmms-eval asks a Maya through the same requests
report/: a page of one or more evaluations, and the paired comparison of two
sheet/: some answers beside their pictures, as one image
"""
