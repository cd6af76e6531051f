"""Make cards (README.md) from the files beside them. No number is typed.

scores.py: `results.json` as sections, weaknesses and the `model-index`
model.py: the model's card, from its config, recipe and results; its licence texts
dataset.py: the card of a dataset that `maya data build` made, from its manifest
templates/: the Markdown of the cards, in Jinja
"""
