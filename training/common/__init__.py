"""The ground that every other room stands on; it imports no other room.

reading.py: files of strangers (text, JSON, YAML), with bounded size and depth
telling.py: text of strangers in a message or on a terminal
"""
