"""A trained Maya, or another image-text-to-text model, in use.

load.py: loads the model and the processor of a folder, a repository, or an adapter with its base
generation.py: greedy answers to many questions about few images; each image's prefix is computed once
chat.py: `maya chat`, streamed answers to questions about one picture
merge.py: `maya merge`, an adapter and its base as one model
mix.py: `maya merge --alpha`, a Maya's decoder averaged with its language model
serve.py: `maya serve`, an OpenAI-compatible server
"""
