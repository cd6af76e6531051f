"""Review sheets: rows that people look at, decide about, and whose decisions win over checks and judges.

    write_sheet(folder, "translation", rows)          # review/translation-1.csv, .html, .json
    read_sheet(folder, Path("filled.csv"))            # into review/overrides.parquet
    read_overrides(folder, "translation")             # (id, lang) -> decision, reviewer, note

A sheet is a CSV for a spreadsheet and an HTML page that saves the same CSV, filled. People fill the
columns decision, reviewer and note; an empty decision is none. A damaged sheet is refused whole, with
every place that is wrong. The JSON beside a sheet says what was asked, so a row is known by its number
even where a spreadsheet made 42 of the id 000042.

A decision is about the text that was shown: it holds its SHA-256, and is not applied to another text.

decisions.py: what is asked, and the decisions in force
pages.py, review.html: the HTML page of a sheet
sheets.py: rows are drawn, and sheets are written
filled.py: filled sheets are read back
"""
