"""Score a Maya: one file for each benchmark, one runner, one results format.

protocol.py: the interface of a task: its requests, the score of one answer, the rows of results
tasks/: the benchmarks, one file each
scoring/: parsers of answers, and metrics
judges/: models that grade answers
asking.py: sends the requests of tasks to a model in this process
served.py: sends the requests to an OpenAI-compatible server
journal.py: stores each answer at once, so that the model never generates an answer twice
processes.py: divides requests among the processes of one evaluation
work.py: finds a task's unanswered requests, and sends these to the model
measures.py: measures of every task's answers, such as language, length and toxicity
answers.py: reads existing answers, and matches them with requests
records.py: turns scored answers into rows and files
run.py: `maya evaluate`: runs the model and two baselines (no picture, another picture). Begin here
rejudge.py: `maya evaluate --rejudge`: scores existing answers without a model
results.py: the format of `results.json`, from which all cards and tables are made
table.py: tables of results, for the terminal, cards and pages
lmms_eval_maya.py: the adapter for lmms-eval
report/: the report page of evaluations, and the paired comparison of two
sheet/: draws one PNG of several pictures and their answers
"""
