"""What a browser would find in a page."""

from __future__ import annotations

from html.parser import HTMLParser


class Contents(HTMLParser):
    """Links (of `a` and `img`), words between tags, and names of tags, in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.words += [data.strip()] * bool(data.strip())
