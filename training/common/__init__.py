"""The ground that every other room stands on; it imports no other room.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
files.py: small files that are whole or absent
paths.py: ~ and $HOME in paths
shapes.py: values of strangers held against a shape
cards.py: Hub cards, and the files that they name
names.py: names of strangers as parts of paths
telling.py: text of strangers in a message or on a terminal
markdown.py: their text in cards and pages
secrets.py: what is left out of files that are written for others
"""
