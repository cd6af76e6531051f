"""Training of the mini Maya's vision tower. In the order of the data flow:

- recipe.py: the keys of its YAML.
- dataset.py: images and captions, without the held-out concepts.
- network.py: the tower and its training heads, and the features read from its layers.
- run.py: the run of its three parts, with the model; ../image_run.py has what the runs of all towers share.
- classes.py: the first part, concept classification.
- memory.py: the associative memory that initializes layers for the second part.
- codes.py: the second part, text codes, and the third part, captions.
- probe.py: scores of the heads, and of probes fitted to the features.
- train.py: the whole run, from the recipe to the saved folder. Begin here.
"""
