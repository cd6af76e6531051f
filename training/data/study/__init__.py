"""`maya data preambles PLAN`: which system prompt translates best, per language.

sampling.py: a sample of captions
references.py: captions and their references, from files
preamble_study.py: the translations of each candidate, scored
preamble_report.py: the report
"""
