"""The model during training: building it, choosing the trained parts, and computing packed rows.

assemble.py: builds a Maya from a vision tower and a language model
checkpoint.py: loads a Maya, or an adapter, from an earlier run
templates.py: makes a decoder's chat template ready for training
adapters.py: low-rank adapters on the decoder
freezing.py: decides which parameters are trained, and at which rate
attention.py: attention in rows where conversations about one image share a prefix
compiling.py: torch.compile for the decoder's layers
loss.py: the output head and the cross entropy, computed tile by tile
flops.py: counts the FLOPs of a training step
"""
