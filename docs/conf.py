"""Sphinx's settings: `sphinx-build -W -b html docs site` makes the pages, without a network.

Before it reads the pages, it writes those about recipes, plans, studies, tasks and commands from the code
itself into docs/generated (see reference.py).
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "Maya"
author = "The maya-vlm contributors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Maya"
html_show_copyright = False
exclude_patterns = ["README.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# Pages include parts of the README, whose links lead to files of the repository; a test follows those.
suppress_warnings = ["myst.xref_missing", "myst.header"]
html_css_files = ["pages.css"]
html_static_path = ["static"]


def setup(app):
    """Write the generated pages before the sources are read."""
    from reference import write_pages

    app.connect("builder-inited", lambda app: write_pages(HERE / "generated"))
