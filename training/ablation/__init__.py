"""Ablation studies: `maya ablate STUDY.yaml` trains, evaluates and compares variants of a recipe.

A cell is one variant of the base recipe. A run is one training of a cell with one seed.

study.py: reads the study file (base recipe, values to vary, seeds, measures) and lists its cells
estimate.py: prints the memory and time of every cell before anything runs
plan.py: lists the runs of all cells and seeds, named by a hash of their content, so that studies share runs
run.py: trains and evaluates the runs, several in parallel, and continues after a stop
outcome.py: reads and writes a run's state (done, failed, diverged), and reads its measured values
statistics.py: means over seeds with confidence intervals, and paired t-tests
report.py: writes a study's report with p values corrected for several comparisons, and the index of all studies
"""
