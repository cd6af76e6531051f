"""Train the stages of a recipe, from start to end.

train.py: runs the stages one after the other, and writes the output folder
processes.py, launch.py: start the processes of a run, with torch or with accelerate
manifest.py: records the recipe and the content of its inputs, and compares them when a run continues
stage.py: makes a stage's data, model and trainer, trains it, and writes its folder
sft_config.py: a stage's SFTConfig
memory.py: whether a stage fits in memory
watched.py: whether a stage's pictures have changed
schedule.py: when a stage saves, evaluates and ends
trainer.py: the training steps and the evaluation on held-out rows
checkpoints.py: checkpoints, and the hashes that show damage
pushing.py: what a run pushes to the Hub while it trains
estimate.py: `--estimate`, from memory.py and work.py
preference.py: recipes of kind dpo, by TRL's own script
"""
