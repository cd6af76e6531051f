"""What learns, and how it computes.

assemble.py: a Maya from two base models; checkpoint.py: from an earlier run, or an adapter
templates.py: its chat template, made ready for training
adapters.py: low-rank adapters on its decoder; freezing.py: which parameters learn, and how fast
attention.py: its attention over shared prefixes; compiling.py: its layers compiled
loss.py: its output matrix and cross entropy
flops.py: the arithmetic that it takes
"""
