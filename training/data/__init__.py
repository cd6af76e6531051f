"""Build Maya's datasets. Importing this room needs no torch, and it does not know the trainer.

The roof, one file a command:
    plan.py: the plan of a build, section by section
    validate.py: `maya data validate`: bad rows of a source
    build.py: `maya data build`: the steps of a plan, in order
    reviews.py: `maya data review` and `maya data policy`: people's decisions, applied

The floors below, in the order in which rows pass them:
    sources/: rows of any form -> source units
    translation/: source units -> one text a language
    verification/: translations -> accepted, or rejected with reasons
    toxicity/: images and texts -> verdicts -> decisions
    dataset/: rows and decisions -> a folder ready for the Hub

What they stand on:
    engine/: one step on one unit of rows, exactly once, on processes, Slurm or Ray
    checks/: one translation against its source
    review/: sheets that people fill in

Beside them:
    study/: which system prompt translates best
    mini_dataset/, mini/: the maker of the small dataset, and the dataset
    plans/: shipped plans

Arrows, one way; a floor imports only floors further down, and no floor imports the roof:
    roof
    dataset, study
    toxicity, verification
    translation, review
    sources
    engine, checks
"""
