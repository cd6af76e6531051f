"""Training of the mini Maya's language model. In the order of the data flow:

- recipe.py: the keys of its YAML.
- concepts.py: the texts of the concepts, from the mini dataset.
- tokenizer.py: the tokenizer, learned from these texts.
- corpus.py: training rows, each one context with many questions.
- network.py: the decoder, a fast forward pass, and the loss of the answers.
- learner.py: one training step, and its saved state.
- probe.py: scores of the trained model.
- train.py: the whole run, from the recipe to the saved folder. Begin here.
"""
