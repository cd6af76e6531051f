"""Accept translations, or reject them with reasons.

plan.py: section `verification` of a plan
survey.py: measure lengths, and find suspicious starts and ends, over all translations of a language
quality.py, scorers/: quality estimation by a model in a separate environment
worker.py: check every row
rows.py: read verified rows, with people's decisions applied
back_translation.py: translate a sample back, and compare it with the source
report.py: counts, and rows for people to review
step.py: the step itself: all of the above, in this order
scoring.py: score translations against references, for studies
"""
