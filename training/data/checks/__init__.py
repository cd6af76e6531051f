"""One translated text against its source: cheap, offline, for every row.

plan.py: the checks by name, and their thresholds
identify.py: the language of a text
repetition.py: loops
boilerplate.py, phrases/: what models say around a translation, or instead of one
rules.py: all checks of a row
"""
