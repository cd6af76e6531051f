"""Load, ask, merge and serve a Maya or another image-text-to-text model.

load.py: loads the model and the processor of a folder, a repository, or an adapter with its base
generation.py: greedy answers to many questions about few images; each image's prefix is computed once
chat.py: `maya chat`, streamed answers to questions about one picture
merge.py: `maya merge`, an adapter and its base as one model
mix.py: `maya merge --alpha`, the trained decoder averaged with the language model that it began as
serve.py: `maya serve`, an OpenAI-compatible server
"""
