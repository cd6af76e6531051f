"""`maya data preambles PLAN`: measure which system prompt (preamble) translates best, per language.

sampling.py: draw a sample of captions
references.py: read captions and reference translations from files
preamble_study.py: translate with each candidate, and score the translations
preamble_report.py: write the report
"""
