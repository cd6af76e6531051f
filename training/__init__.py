"""How a Maya is trained and evaluated; installed as `maya_vlm.training`.

- recipe.py, arguments.py, recipes/, accelerate/: recipes of runs, and configs for several GPUs.
- common/: helpers that every room shares.
- rows/: reads dataset rows of any format.
- batches/: turns rows into packed batches.
- model/: the model during training.
- run/: one training run, from recipe to finished folder.
- inference/: loads a trained Maya, generates, serves.
- evaluation/: benchmarks, metrics, judges, results.
- ablation/, studies/: compares recipes in studies.
- bases/: trains the small base models of the mini Maya.
- data/: builds datasets.
- cli/: the command line, one file per subcommand.
"""
