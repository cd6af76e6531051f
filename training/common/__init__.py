"""The ground that every other room stands on; it imports no other room.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
files.py: small files that are whole or absent
paths.py: ~ and $HOME in paths
secrets.py: what is left out of files that are written for others
telling.py: text of strangers in a message or on a terminal
"""
