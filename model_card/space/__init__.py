"""A demo page of a Maya in the browser: a picture, a question, an answer in one language or in all.

- asking.py: gets the model's answers for the page.
- app.py: the page itself. A Space gets copies of app.py and asking.py, so they import only gradio, torch and
  transformers.
- start.py: `maya space`, runs the page on this machine.
- send.py: `maya publish --kind space`, pushes the page to a Space.
"""
