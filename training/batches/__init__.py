"""Turn dataset rows into packed training batches.

A group is one image with its conversations, usually one per language. A packed row has whole groups and no
padding. The conversations of a group share their start, which contains the image's tokens. This shared
prefix is stored once.

open.py: opens the data of a stage, in memory or streamed
source.py: GroupSource, the interface of opened data: conversations, images, and a plan of groups
groups.py: a GroupSource in memory
noise.py: replaces a share of texts by wrong ones, for studies
joined.py: joins sorted tables of texts and images into groups, block by block
streaming.py: a GroupSource that reads these groups during training
packing.py: packs tokenized conversations into trees with a shared prefix, balanced rows, and tensors
collator.py: the batches of one process, with tokens and pixels
"""
