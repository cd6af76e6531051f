"""Judge images and texts for toxicity: models give verdicts, which are stored, and a policy decides by them.

policy.py: from verdicts to decisions
plan.py: section `toxicity` of a plan: judges and policy
protocols.py: what guard models are asked, and how their answers are read
classifiers.py, guards.py: judges that give probabilities, and judges that write their verdict
verdicts.py: one verdict, and the worker that asks for it
step.py: what is judged, by whom
decisions.py: the policy on a build's verdicts
sheets.py: rows for people to look at
"""
