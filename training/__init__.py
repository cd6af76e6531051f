"""How a Maya is trained and evaluated; installed as `maya_vlm.training`.

A Maya is a model of modeling_maya. Each folder below is called a room. Hub code is the code that a saved Maya
carries with it: the modules named `*_maya.py` of modeling_maya and processing_maya.

- recipe.py, arguments.py, recipes/, accelerate/: recipes of runs, and configs for several GPUs.
- common/: helpers that every room shares.
- rows/: reads dataset rows of any format.
- batches/: turns rows into packed batches.
- model/: the model during training.
- run/: one training run, from recipe to finished folder.
- inference/: loads a trained Maya, generates, serves.
- evaluation/: benchmarks, metrics, judges, results.
- ablation/, studies/: compares variants of a recipe; the study files that ship with the package.
- bases/: trains the small base models of the shipped recipe `mini`.
- data/: builds datasets.
- cli/: the command line, one file per subcommand.
"""
