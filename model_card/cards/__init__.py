"""Cards (README.md), filled from the files beside them: no number is typed.

scores.py: `results.json` as sections, weaknesses and the `model-index`
model.py: the model's card, from its config, recipe and results; its licence texts
dataset.py: the card of a dataset of `maya data build`, from its manifest
templates/: their Markdown, in Jinja
"""
