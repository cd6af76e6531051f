"""The answer sheet: pictures with what a model answers about them, as one image.

draw.py: which answers, and where they stand
lettering.py: lines of text in every script as SVG paths; needs the packages of the extra `eval`
"""
