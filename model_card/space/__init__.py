"""A demo of a Maya in the browser: a picture, a question, an answer in one language or in all.

- asking.py: what the page asks the model.
- app.py: the page. Both are copied to a Space of the Hub as they are: they import gradio, torch and
  transformers only.
- start.py: `maya space`, the page on this machine.
- send.py: `maya publish --kind space`.
"""
