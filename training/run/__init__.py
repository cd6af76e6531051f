"""One run, start to end.

train.py: the stages of a recipe, one after the other, and the output folder; processes.py, launch.py: the
    processes they run in, started here or by accelerate
manifest.py: what a run is, compared when it is continued
stage.py: a stage's data, model and trainer, made and run, and the folder that it leaves
sft_config.py: the stage's SFTConfig; memory.py: whether it fits; watched.py: whether its pictures changed
schedule.py: when it saves, evaluates and ends
trainer.py: its steps and held-out rows; checkpoints.py: what they leave
pushing.py: what a run pushes to the Hub while it trains
estimate.py: `--estimate`, from memory.py and work.py
preference.py: recipes of kind dpo, by TRL's own script
"""
