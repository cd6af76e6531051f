"""The model during training: how it is built, which parts learn, and how it computes packed rows.

assemble.py: builds a Maya from a vision tower and a language model
checkpoint.py: loads a Maya, or an adapter, from an earlier run
templates.py: makes a decoder's chat template ready for training
adapters.py: low-rank adapters on the decoder
freezing.py: which parameters learn, and at which rate
attention.py: attention in rows where conversations about one image share a prefix
compiling.py: torch.compile for the decoder's layers
loss.py: the output matrix (head) and the cross entropy
flops.py: counts the FLOPs of a training step
"""
