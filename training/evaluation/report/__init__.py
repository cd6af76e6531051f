"""Results for readers: an HTML page of one or more evaluations, and the paired comparison of two.

evaluations.py: reads results.json with its answers and pictures
published.yaml, published.py: the numbers reported by papers, with their harness and judge
compare.py: the paired comparison of two models on the same questions
page.py, page.html.jinja: the page report.html
"""
