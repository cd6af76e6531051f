"""The ground that every other room stands on; beside itself it imports only what a Maya is.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
telling.py: text of strangers in a message or on a terminal
names.py: a folder, or a repository at a revision
languages.py: codes of languages
models.py: models of strangers, found, checked and loaded
adapters.py: adapters of peft, with the base that they name
"""
