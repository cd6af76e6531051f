"""Build Maya's datasets. This package imports neither torch nor the trainer.

Layer `top`, the files of this folder, one per command:
    plan.py: the plan of a build (one YAML file) and its sections
    validate.py: `maya data validate`: report bad rows of a source
    build.py: `maya data build`: run the steps of a plan in order
    reviews.py: `maya data review` and `maya data policy`: apply people's decisions

Steps of a build, in the order in which rows pass through them:
    sources/: rows in any format -> units of source rows (parquet files)
    translation/: source units -> one text per language
    verification/: translations -> accepted, or rejected with reasons
    toxicity/: images and texts -> verdicts -> decisions
    dataset/: rows and decisions -> a folder ready for the Hub

What the steps use:
    engine/: run one step on units of rows, each row exactly once, in processes or on Slurm or Ray
    checks/: compare one translation with its source
    review/: sheets that people fill in

Alongside:
    study/: measure which system prompt translates best
    mini_dataset/: code that builds the small dataset
    mini/: the small dataset itself
    plans/: plans that ship with the package

Layers, highest first; a layer imports only from lower layers:
    top
    dataset, study
    toxicity, verification
    translation, review
    sources
    engine, checks
"""
