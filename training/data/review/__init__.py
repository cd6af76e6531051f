"""Review sheets: rows that people look at and decide about.

pages.py, review.html: sheets are written, and read back when they are filled in
"""
