"""Studies over recipes: `maya ablate STUDY.yaml` trains, scores and compares the cells of a study.

study.py: the study file, and the cells that it asks for
plan.py: the runs of all cells and seeds, by content, and what they will cost
run.py: trains and scores the runs, several at once, and continues after a stop
outcome.py: the state and the measured values of a run
statistics.py: means over seeds, paired differences, correction for several comparisons
report.py: the report of a study, and the index of all studies
"""
