"""The answer sheet: one PNG of pictures with a model's answers about them.

draw.py: selects the answers and lays out the sheet
lettering.py: lines of text in every script as SVG paths; needs the packages of the extra `eval`
"""
