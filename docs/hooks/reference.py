"""Writes the pages of the Python reference from the public names, and of the functions that the method page names."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import rca_lightning

ROW = re.compile(r"^(\| \((\d+)\) \|.*\| )(`[\w/]+\.py`(?:, `[\w/]+\.py`)*)( \| )(`.+`)( \|)$", flags=re.MULTILINE)
HEADER = "| | Equation | File | Function |\n"
ROOMS = {
    "modules": "Modules: networks that are trained",
    "data": "Data",
    "callbacks": "Callbacks of the Trainer",
    "rca": "The method, in plain torch",
    "clustering": "Clustering",
    "backbones": "Backbones",
    "evaluation": "Scores",
    "checkpoints": "Checkpoints",
}
INTRODUCTION = """# Python reference

Everything that `from rca_lightning import ...` gives, made from the docstrings when the site is built. These names are
kept from version to version; what stands deeper in the package may move.

"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add both pages."""
    method = (Path(config.docs_dir) / "method.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "reference.md", content=_reference()))
    files.append(File.generated(config, "functions.md", content=_functions(method)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead from each equation to its functions."""
    if page.file.src_uri != "method.md":
        return markdown

    def lead(match: re.Match[str]) -> str:
        names = (f"[`{name}`](functions.md#{path})" for name, path in _named(match[3], match[5]))
        return f"{match[1]}{', '.join(names)} in {match[3]}{match[6]}"

    # Files beside functions in one column leave more room for the equation.
    return ROW.sub(lead, markdown).replace(f"{HEADER}|---|---|---|---|", "| | Equation | Function |\n|---|---|---|")


def _reference() -> str:
    rooms: dict[str, list[str]] = {}
    for name in sorted(rca_lightning.__all__, key=lambda name: name != "RCAModule"):  # the one that is read first
        if name in rca_lightning._MODULES:
            rooms.setdefault(rca_lightning._MODULES[name].split(".")[0], []).append(name)
    order = [*ROOMS, *(room for room in rooms if room not in ROOMS)]
    parts = [INTRODUCTION]
    for room in order:
        if room in rooms:
            parts.append(f"## {ROOMS.get(room, room.capitalize())}\n")
            parts += [_entry(f"rca_lightning.{rca_lightning._MODULES[name]}.{name}") for name in rooms[room]]
    return "\n".join(parts)


def _functions(method: str) -> str:
    parts = ["# Functions of the method\n", "What [The method](method.md) names, in the order of its equations.\n"]
    done: set[str] = set()
    for match in ROW.finditer(method):
        new = {path: name for name, path in _named(match[3], match[5]) if path not in done}
        done.update(new)
        if new:
            parts += [f"## Equation {match[2]}\n", *(_entry(path, called=name) for path, name in new.items())]
    return "\n".join(parts)


def _named(files: str, functions: str) -> list[tuple[str, str]]:
    """Functions of a row of the table, and where each is in the package."""
    modules = [f"rca_lightning.{file.replace('/', '.')}" for file in re.findall(r"`([\w/]+)\.py`", files)]
    names = re.findall(r"`([\w.]+)`", functions)
    # Of several files each has one of the functions.
    modules = modules if len(modules) == len(names) else modules[:1] * len(names)
    return [(name, f"{module}.{name}") for name, module in zip(names, modules, strict=True)]


def _entry(path: str, *, called: str | None = None) -> str:
    """Where the documentation of an object stands; of a function of the method with its source."""
    lines = ["    options:", "      show_source: true", f"      heading: {called}", f"      toc_label: {called}"]
    return "\n".join([f"::: {path}", *(lines if called else []), ""])
