"""Judges: models that grade answers.

rubric.py: what a judge is asked, and how its reply is read
rubrics.py: the published rubrics, and a stricter one beside each
judge.py: what a judge is; any OpenAI-compatible endpoint
local.py: a local transformers model as a judge
journal.py: judgements on disk
judging.py: asks a judge for what the journal does not hold, and counts what failed
"""
