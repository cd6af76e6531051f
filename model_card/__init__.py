"""How a Maya is published: cards made from its files, and the way to the Hub.

cards/: what README.md says, filled from the files beside it
hub/: what is sent, and whether it arrived
space/: a demo page, on this machine or as a Space
"""
