"""The language model of the mini Maya, and how it is made. In the order of the flow:

- recipe.py: the keys of its YAML.
- concepts.py: the texts of the concepts, from the mini dataset.
- tokenizer.py: the tokenizer, learned from these texts.
- corpus.py: rows of one context and many questions.
- network.py: the decoder, its fast forward pass and the loss of the answers.
- learner.py: one step of training, and its state.
- probe.py: what the model has learned.
- train.py: from the recipe to the saved folder. Begin here.
"""
