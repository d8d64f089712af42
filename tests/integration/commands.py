"""Commands that are written in the comments of a file."""

from __future__ import annotations

import shlex


def written_commands(text: str, program: str = "rca") -> list[list[str]]:
    r"""The words of each command that a comment line begins with, lines ending in `\` joined to the next.

    Args:
        text: content of a file whose comments begin with `#`.
        program: first word of the commands.
    """
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and not line.startswith("#!")]
    joined = "\n".join(comments).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in joined if line.startswith(f"{program} ")]
