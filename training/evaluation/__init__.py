"""Score a Maya: one file for each benchmark, one runner, one results format.

protocol.py: the interface of a task: requests, the score of one answer, rows of numbers
tasks/: the benchmarks, one file each
scoring/: parsers of answers, and metrics
judges/: models that grade answers
asking.py: asks a model in this process the requests of tasks
served.py: asks a model behind an OpenAI-compatible server
journal.py: stores every answer at once, so that none is generated twice
processes.py: divides requests among processes
work.py: the requests of a task, and which of them have an answer
measures.py: measures of every answer, whatever the task
answers.py: reads existing answers, and matches them with requests
records.py: turns scored answers into rows and files
run.py: `maya evaluate`: asks the model and two baselines
rejudge.py: `maya evaluate --rejudge`: scores existing answers without a model
results.py: `results.json`, the one format of numbers
table.py: tables of results, for the terminal, cards and pages
lmms_eval_maya.py: the adapter for lmms-eval
report/: the report page of evaluations, and the paired comparison of two
sheet/: draws some answers beside their pictures
"""
