"""Sphinx's settings: `sphinx-build -W -b html docs site` makes the pages, without a network.

Before it reads the pages, it writes those about recipes, plans, studies, tasks and commands from the code
itself into docs/generated (see reference.py).
"""

import sys
from pathlib import Path

from sphinx import addnodes
from sphinx.transforms import SphinxTransform

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
html_css_files = ["pages.css"]
html_static_path = ["static"]


class RepositoryLinks(SphinxTransform):
    """Copy Markdown files that are not pages onto the site, as MyST does with all other linked files."""

    default_priority = 400

    def apply(self, **kwargs):
        """Turn links to such files into downloads."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            target = link["reftarget"]
            if link.get("refdomain") != "doc" or target in self.env.found_docs:
                continue
            if Path(self.env.srcdir, f"{target}.md").is_file():
                link.replace_self(
                    addnodes.download_reference(
                        "", "", *link.children, reftarget=f"/{target}.md", refdoc=self.env.docname
                    )
                )


def setup(app):
    """Write the generated pages before the sources are read."""
    from reference import write_pages

    app.connect("builder-inited", lambda app: write_pages(HERE / "generated"))
    app.add_transform(RepositoryLinks)
