"""The small base models that ship with the package, and how they are made.

- augmentation.py: redraws pictures, for the tower's training.
- tables.py: reads the mini dataset.
- text_codes.py: the fixed codes of the concepts that both models are trained towards.
- muon.py: the optimizer of both models' matrices.
- storing.py: the state of a run, and the move of a finished folder into its place.
- vision_tower/: makes the vision tower.
- language_model/: makes the language model.
- mini/: the two models that ship.
"""
