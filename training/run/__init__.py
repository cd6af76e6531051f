"""Train the stages of a recipe, from start to end.

train.py: runs the stages one after the other, and writes the output folder. Begin here
processes.py, launch.py: start the processes of a run, with torch or with accelerate
manifest.py: records the recipe and the content of its inputs, and compares them when a run continues
stage.py: makes a stage's data, model and trainer, trains it, and writes its folder
sft_config.py: makes a stage's SFTConfig
memory.py: computes a process's memory, and checks that a stage fits
watched.py: finds pictures that changed since a stage began
schedule.py: decides when a stage logs, evaluates, saves and ends
trainer.py: the training steps and the evaluation on held-out rows
checkpoints.py: finds, checks and deletes checkpoints; detects damage by hashes
pushing.py: pushes checkpoints and finished models to the Hub during training
work.py: counts a stage's groups, tokens, steps and evaluations
estimate.py: `--estimate`, the memory and time of every stage, from memory.py and work.py
preference.py: recipes of kind dpo, with TRL's DPO script
"""
