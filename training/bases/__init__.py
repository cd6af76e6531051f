"""The small base models of the mini Maya that ship with the package, and the code that trains them.

Both learn about concepts: things that emoji show, each with images in several art styles and a name per language.

- augmentation.py: random changes to images, for training the vision tower.
- tables.py: reads the mini dataset.
- text_codes.py: fixed vectors ("codes") of the concepts, a training target shared by both models.
- muon.py: Muon, the optimizer for both models' matrices.
- storing.py: saves the state of a run, and moves a finished model folder into place.
- vision_tower/: trains the vision tower.
- language_model/: trains the language model.
- mini/: the two trained models.
"""
