"""Training of vision towers together with a text tower of their own, as SigLIP and CLIP were trained.

In the order of the data flow:

- recipe.py: the keys of its YAML.
- captions.py: the tokenizer, learned from the captions, and the captions as token ids.
- network.py: transformers' own two-tower model.
- probe.py: retrieval scores of the validation images.
- train.py: the whole run, from the recipe to the saved folder. Begin here.
"""
