"""From rows to packed batches.

open.py: opens the data of a stage
source.py: what it then is, a `GroupSource`: conversations, images, and a plan of groups
groups.py: one that is held in memory
joined.py, streaming.py: one that is read as it is trained on, joined from sorted tables
encoding.py: conversations to tokens
packing.py: which process computes which groups, in which rows
collator.py: the tensors of a step
"""
