"""The ground that every other room stands on; it imports no other room.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
shapes.py: their values held against a shape
cards.py: Hub cards, and the files that they name
names.py: their names as parts of paths
telling.py: their text in a message or on a terminal
markdown.py: their text in cards and pages
secrets.py: what is left out of files that are written for others
"""
