"""Review sheets: people look at rows and decide; their decisions override checks and judges.

    write_sheet(folder, "translation", rows)          # review/translation-1.csv, .html, .json
    read_sheet(folder, Path("filled.csv"))            # adds to review/overrides.parquet
    read_overrides(folder, "translation")             # (id, lang) -> decision, reviewer, note

A sheet is a CSV for spreadsheets and an HTML page that saves the same CSV when filled. People fill the
columns decision, reviewer and note; an empty decision means undecided. A damaged sheet is rejected as a
whole, and the error lists the wrong cells. The JSON file of a sheet stores the questions, so the row
number identifies a row even if a spreadsheet turned the id 000042 into 42.

A decision applies only to the text that was shown: it stores the text's SHA-256.

decisions.py: the possible decisions, and the stored ones
pages.py, review.html: the HTML page of a sheet
sheets.py: sample rows and write sheets
filled.py: read filled sheets
"""
