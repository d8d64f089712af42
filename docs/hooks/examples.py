"""Docstrings as Markdown: "Example:" as code, and `<model>` outside of code as text instead of a tag of HTML."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was loaded."""
        if obj.docstring:
            text, mark, examples = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M).partition(
                "Examples:"
            )
            parts = re.split(r"(`[^`]*`)", text)
            parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
            obj.docstring.value = "".join([*parts, mark, examples])  # the parser knows "Examples:" alone
