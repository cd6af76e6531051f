"""Publish a Maya or a dataset: cards from the files of its folder, pushes to the Hub, and a demo page.

cards/: makes README.md from the other files of its folder
hub/: pushes folders to the Hub, and checks the uploaded files
space/: a demo page, on this machine or as a Space
serving/: a recipe for vLLM
pictures/: screenshots for the README
"""
