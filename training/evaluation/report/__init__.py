"""What people look at: a page of one or more evaluations, and the paired comparison of two.

evaluations.py: results.json with its answers and pictures
published.yaml, published.py: the numbers that papers report, with their harness and judge
compare.py: two models on the same questions
page.py, page.html.jinja: the page
"""
