"""Judge images and texts for toxicity: models give verdicts, which are stored; a policy decides from them.

policy.py, policies/: rules from verdicts to decisions
plan.py, presets.yaml: section `toxicity` of a plan: judges and policy
protocols.py, prompts.yaml: prompts of guard models, and parsers of their answers
classifiers.py: judges that return probabilities
guards.py: judges that write their verdict as text
verdicts.py: the format of a verdict, and the worker that asks a judge
step.py: the step: which judge gets which inputs
decisions.py: apply the policy to a build's verdicts
sheets.py: select rows for people to review
"""
