"""Accept translations, or reject them with their reasons.

plan.py: section `verification` of a plan
survey.py: lengths, starts and ends of a language's translations
quality.py, scorers/: a quality-estimation model in an environment of its own
worker.py: the checks of every row
rows.py: verified rows, with people's decisions applied
back_translation.py: a sample is translated back
report.py: counts, and rows for people to look at
step.py: the step, in that order
scoring.py: translations against references, for studies
"""
