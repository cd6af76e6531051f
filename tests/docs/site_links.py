"""Dead links of a folder of HTML pages."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            elif name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value or "")


def dead_links(site: Path) -> Iterator[str]:
    """Yield `page: link` for every link to a file or an anchor that the site does not have.

    Args:
        site: a folder of HTML pages. Addresses with a scheme or a host are not followed.
    """
    pages = {path.resolve(): _Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            is_there = target.is_file() and target.is_relative_to(site.resolve())
            anchors = pages[target].anchors if target in pages else {""}
            if not is_there or unquote(parts.fragment) not in anchors:
                yield f"{path.relative_to(site.resolve())}: {link}"
