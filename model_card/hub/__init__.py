"""The way to the Hub.

recipe_copy.py: the recipe that is published, without secrets and paths
remote.py: a repository before something is sent to it, and whether what was sent arrived
publish_dataset.py: a dataset, through a branch of its own and one commit
publish.py: `maya publish`: check a folder, write its card, send it, compare what arrived
renew.py: `maya renew`: the code of this package for a Maya saved or published earlier
"""
