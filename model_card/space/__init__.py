"""A demo page of a Maya in the browser: a picture, a question, an answer in one language or in all.

- asking.py: asks the model for the page.
- app.py: the page. A Space of the Hub gets a copy of both files, so they import gradio, torch and
  transformers only.
- start.py: `maya space`, the page on this machine.
- send.py: `maya publish --kind space`.
"""
