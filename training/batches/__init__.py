"""Turn dataset rows into packed training batches.

open.py: opens the data of a stage, in memory or streamed
source.py: GroupSource, the interface of opened data: conversations, images, and a plan of groups
groups.py: a GroupSource in memory
joined.py, streaming.py: a GroupSource read during training, joined from sorted tables
packing.py: packs tokenized conversations into trees with a shared prefix, balanced rows, and tensors
collator.py: the batches of one process, with tokens and pixels
"""
