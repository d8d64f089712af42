"""Commands that are written in the comments of a file, or on a page."""

from __future__ import annotations

import re
import shlex
import textwrap


def written_commands(text: str, program: str = "rca") -> list[list[str]]:
    r"""The words of each command that a comment line begins with, lines ending in `\` joined to the next.

    Args:
        text: content of a file whose comments begin with `#`.
        program: first word of the commands.
    """
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and not line.startswith("#!")]
    joined = "\n".join(comments).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in joined if line.startswith(f"{program} ")]


_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*).*?\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", flags=re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of a page that are in a language."""
    return [textwrap.dedent(found["text"]) for found in _FENCE.finditer(text) if found["language"] == language]


def page_commands(text: str) -> list[list[str]]:
    """The words of each command in the fenced bash blocks of a page, as one shell would see them.

    Args:
        text: Markdown. Variables that it sets are replaced; what it does not set stays as it is.
    """
    known: dict[str, str] = {"PWD": "."}
    commands = []
    for line in "\n".join(fenced(text, "bash")).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], found[0]), line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|"):
                while words and (assigned := _ASSIGNMENT.fullmatch(words[0])):
                    words = words[1:]
                    if not words:
                        known[assigned[1]] = assigned[2]
                if words:
                    commands.append(words)
                words = []
            else:
                words.append(word)
    return commands
