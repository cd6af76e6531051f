"""Push folders to the Hub.

recipe_copy.py: the recipe to publish, without secrets and paths
remote.py: creates a repository, and compares its files with those that were sent
try_out.py: has a model answer in a fresh process
projector.py: the files of a projector-only repository, and the answer of a pushed projector joined with its bases
publish_dataset.py: pushes a dataset through a branch of its own, in one commit
publish.py: `maya publish`: checks a folder, writes its card, pushes it, and compares what arrived
training_push.py: pushes the models of a run while it trains
renew.py: `maya renew`: updates the code of a Maya that was saved or published earlier
"""
