"""Make cards (README.md) from the other files of a folder. No number is written by hand.

scores.py: turns `results.json` into sections, weaknesses and the `model-index`
model.py: makes a model's card and licence texts, from its config, recipe and results
dataset.py: makes the card of a dataset of `maya data build`, from its manifest
templates/: Jinja templates of the cards' Markdown
"""
