"""The vision tower of the mini Maya, and how it is made. In the order of the flow:

- recipe.py: the keys of its YAML.
- dataset.py: pictures and captions, without the held-out concepts.
- network.py: the tower with the heads it is trained with, and what is read off its layers.
- run.py: what the parts share: model, randomness, log, and the state to go on from.
- classes.py: the first part, concept classification.
- memory.py: the associative memory that the second part begins with.
- codes.py: the second part, text codes, and the third, captions.
- probe.py: scores of the heads, and of probes fitted to the features.
- train.py: from the recipe to the saved folder. Begin here.
"""
