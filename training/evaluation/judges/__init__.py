"""Judges: models that grade answers.

rubric.py: a rubric (the judge's prompt, and the parser of its reply) and one case to judge
rubrics.py: the published rubrics, each with a stricter version
judge.py: the interface of a judge; a judge at an OpenAI-compatible endpoint
local.py: a local transformers model as judge
journal.py: stores judgements, so that a judge never judges a case twice
judging.py: asks the judge about cases that are not in the journal, and counts failed judgements
plan.py: the judge's settings, from the command line or for `evaluate`
"""
