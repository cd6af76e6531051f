"""The ground that every other room stands on; beside itself it imports only what a Maya is.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
languages.py: codes of languages
reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
files.py: small files that are whole or absent
locks.py: locks that processes hold on files
paths.py: ~ and $HOME in paths
images.py: pictures in folders, archives and tables; json_rows.py, picture_tables.py: their tables
hub.py, network.py: the Hub's datasets, and errors of the network
shapes.py: values of strangers held against a shape
cards.py: Hub cards, and the files that they name
names.py: names of strangers as parts of paths
telling.py: text of strangers in a message or on a terminal
markdown.py: their text in cards and pages
cells.py: their text in spreadsheets
secrets.py: what is left out of files that are written for others
revisions.py: a folder, or a repository at a revision
models.py: models of strangers, found, checked and loaded
adapters.py: their adapters of peft, with the bases that these name
"""
