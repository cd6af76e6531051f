"""From rows to packed batches.

open.py: opens the data of a stage
source.py: what it then is, a `GroupSource`: conversations, images, and a plan of groups
groups.py: one that is held in memory
joined.py, streaming.py: one that is read as it is trained on, joined from sorted tables
packing.py: conversations in tokens to trees with a shared prefix, balanced rows, and tensors
collator.py: the batches of a process, tokenised and with pixels
"""
