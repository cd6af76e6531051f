"""The small base models of the mini Mayas that ship with the package, and the code that trains them.

All learn about concepts: things that emoji show, each with images in several art styles and a name per language.

- augmentation.py: random changes to images, for training vision towers.
- tables.py: reads the mini dataset.
- text_codes.py: fixed vectors ("codes") of the concepts, a training target shared by both models of mini/.
- muon.py: Muon, the optimizer for all models' matrices.
- storing.py: saves the state of a run, and moves a finished model folder into place.
- image_run.py: what the runs of all vision towers share.
- vision_tower/: trains the vision tower of mini/.
- contrastive/: trains vision towers together with a text tower of their own, as SigLIP and CLIP were trained.
- language_model/: trains language models.
- mini/: a vision tower and a language model that were trained towards the same codes.
- apart/: two vision towers (SigLIP, CLIP) and a language model that have not met.
"""
