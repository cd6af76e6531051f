"""A trained Maya, or another image-text-to-text model, in use.

load.py: the network and the processor of a folder, a repository, or an adapter on its base
generation.py: greedy answers to many questions about few images, each image's prefix computed once
chat.py: `maya chat`, one picture and questions about it, answered as they come
merge.py: `maya merge`, an adapter and its base as one model
mix.py: `maya merge --alpha`, a Maya's decoder averaged with its language model
serve.py: `maya serve`, an OpenAI-compatible server
"""
