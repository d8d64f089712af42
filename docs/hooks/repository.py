"""Takes into the site what pages link to outside of docs: READMEs become pages, other files lie beside them.

So a link serves on both, on the site and where the repository is read as files, and nothing is copied by hand.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CODE = re.compile(r"(^ *```.*?^ *```|``[^\n]*?``|`[^`]*`)", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+)(?=[)\s])")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|#|/", flags=re.IGNORECASE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that a page leads to, over any number of links."""
    root = Path(config.config_file_path).parent
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += [name for name in _names(config.nav) if name not in files.src_uris and (root / name).is_file()]
    done = set(waiting)
    while waiting:
        path = waiting.pop()
        file = files.get_file_from_path(_on_site(path, root))
        if file is None:
            file = _file(path, root, config)
            files.append(file)
        if not file.is_documentation_page():
            continue
        for target in _targets(file.content_string):
            reached = _resolve(path if (root / path).is_file() else _on_site(path, root), target)
            if reached not in done and not reached.startswith("..") and (root / reached).exists():
                done.add(reached)
                if not _on_site(reached, root).startswith("index.md"):  # README.md itself: the start of the site
                    waiting.append(reached)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the files are on the site."""
    root = Path(config.config_file_path).parent
    here = page.file.src_uri
    path = f"docs/{here}" if (root / "docs" / here).is_file() else here

    def lead(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if SCHEME.match(match[2]):
            return match[0]
        there = _on_site(_resolve(path, target), root)
        return f"{match[1]}{posixpath.relpath(there, posixpath.dirname(here) or '.')}{mark}{anchor}"

    parts = CODE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(lead, part) for number, part in enumerate(parts))


def _names(nav: Any) -> list[str]:
    """Files that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [name for value in values for name in _names(value)]


def _targets(markdown: str) -> list[str]:
    """Relative links of a page, without anchors."""
    prose = "".join(CODE.split(markdown)[::2])
    found = [match[2].partition("#")[0] for match in LINK.finditer(prose) if not SCHEME.match(match[2])]
    return list(dict.fromkeys(found))


def _resolve(path: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _on_site(path: str, root: Path) -> str:
    """Where a file of the repository is on the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (root / path).is_dir():
        return f"{path}/README.md" if (root / path / "README.md").is_file() else f"{path}/index.md"
    return path


def _file(path: str, root: Path, config: MkDocsConfig) -> File:
    """A file of the repository as one of the site; of a folder without a README the list of what is in it."""
    there = _on_site(path, root)
    if (root / there).is_file():
        return File.generated(config, there, abs_src_path=str(root / there))
    names = sorted(entry.name for entry in (root / path).iterdir() if not entry.name.startswith(("__", ".")))
    lines = [f"- [{name}]({name})" for name in names]
    return File.generated(config, there, content="\n".join([f"# `{path}`", "", *lines, ""]))
