"""Push folders to the Hub.

recipe_copy.py: makes the recipe to publish, without secrets and local paths
remote.py: creates a repository, and compares the repository's files with the local files
try_out.py: loads a model in a fresh process and makes it answer a question
projector.py: writes the files of a projector-only repository, and tests a pushed projector, joined with its bases, by a question
leaderboards.py: writes `.eval_results/*.yaml`, the scores for leaderboards of benchmark datasets
publish_dataset.py: pushes a dataset to a temporary branch, checks it, and publishes it in one commit
publish.py: `maya publish`: checks a folder, writes its card, pushes it, and checks the pushed files. Begin here
training_push.py: pushes the models of a run during training
renew.py: `maya renew`: updates the code files of a Maya that was saved or published earlier
"""
