"""Translate each source row into every target language.

plan.py, presets/: section `translator` of a plan; presets of known models
prompts.py, preambles/: build the prompts, and extract the translation from an answer
text_pieces.py: split a text into pieces to translate and pieces to keep
local_models.py: get answers from a model in this process
worker.py: translate one text per request, with an endpoint or a local model; check answers, retry, reject
"""
