"""A trained Maya, or another image-text-to-text model, in use.

load.py: the network and the processor of a folder, a repository, or an adapter on its base
generation.py: greedy answers to many questions about few images, each image's prefix computed once
chat.py: `maya chat`, one picture and questions about it, answered as they come
serve.py: `maya serve`, an OpenAI-compatible server
"""
