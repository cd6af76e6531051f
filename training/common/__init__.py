"""The ground that every other room stands on; beside itself it imports only what a Maya is.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
names.py: their names as parts of paths
telling.py: their text in a message or on a terminal
revisions.py: a folder, or a repository at a revision
models.py: their models, found, checked and loaded
adapters.py: their adapters of peft, with the bases that these name
"""
