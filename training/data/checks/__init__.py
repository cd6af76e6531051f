"""Check one translated text against its source, cheaply and offline, so that every row can be checked.

plan.py: names of the checks, and their thresholds
identify.py: identify the language of a text
repetition.py: find loops of a decoder
boilerplate.py, phrases/: find phrases that models add to a translation, or write instead of it
rules.py: run all checks on a row
"""
