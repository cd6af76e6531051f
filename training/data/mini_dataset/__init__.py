"""The maker of the mini dataset, from pinned npm packages: `maya data mini --output DIR`.

sources.py, sources.json: the packages, fetched and verified
draw.py, prompts.json: choices by the seed; wordings in every language
concepts.py, sensitive.json: what the dataset is about
render.py, refused.json: vector art -> pictures
texts.py, negatives.py, instruct.py: captions and questions
messages.py: the config `messages`
tables.py: parquet files
card.py, card.md, attribution.md: the dataset card and credits
build.py: all of it in order; what is drawn or written once is copied from ../mini
"""
