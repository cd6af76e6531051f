"""Build the mini dataset from pinned npm packages: `maya data mini --output DIR`.

sources.py, sources.json: fetch and verify the packages
draw.py, prompts.json: random choices from a fixed seed; question wordings in every language
concepts.py, sensitive.json: the concepts, one per emoji, with their names
render.py, refused.json: convert vector art to pictures; the drawings that are left out, with reasons
texts.py, negatives.py, instruct.py: write captions and questions
messages.py: write the config `messages`
tables.py: write parquet files
card.py, card.md, attribution.md: write the dataset card and the credits
build.py: run all of it in order; stored random choices and texts are copied from ../mini
"""
