"""Translate source rows: one text for each language.

plan.py, presets/: section `translator` of a plan; presets of known models
prompts.py, preambles/: what a translator is told, and how its answers are read
text_pieces.py: which parts of a text are translated
local_models.py: answers from a model in this process
worker.py: one text a request, from an endpoint or such a model; checked, asked again, or rejected
"""
