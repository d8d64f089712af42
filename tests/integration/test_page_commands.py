"""Every command on a page of the documentation, and of a README, is one that its program understands; none is run."""

from __future__ import annotations

import argparse
import ast
import configparser
import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from rca_lightning.cli.main import main
from tests.integration.commands import fenced, page_commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "experiments/**/README.md", "benchmarks/*.md", "tests/**/README.md")
    for path in ROOT.glob(pattern)
)
# Programs of others whose words only they can judge.
OTHERS = {"awk", "lint-imports", "mkdocs", "mypy", "ruff", "sbatch"}


class Parsed(Exception):  # noqa: N818 - the end of a program that understood its words
    """Words were understood; nothing after that is run."""


@pytest.fixture(autouse=True)
def only_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the root of the checkout, where every program ends once its words are understood."""
    monkeypatch.chdir(ROOT)
    depth = 0

    def ending(parse: Any) -> Any:
        def parse_and_end(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                found = parse(*args, **kwargs)
            finally:
                depth -= 1
            # A parser within a parser goes on, and so does `rca`, which looks for its configuration first.
            if depth or (parse.__name__ == "parse_known_args" and sys.argv[0] == "rca"):
                return found
            raise Parsed

        return parse_and_end

    for kind in (jsonargparse.ArgumentParser, argparse.ArgumentParser):
        for name in ("parse_args", "parse_known_args"):
            monkeypatch.setattr(kind, name, ending(getattr(kind, name)))


def understand(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """End in `Parsed`, or return where there is nothing to parse; anything else is a mistake on the page."""
    words = ["0" if word == "SEED" else word for word in words]
    program, *rest = words
    if program in ("/usr/bin/time", "time"):
        understand([word for word in rest if word != "-v"], monkeypatch)
    elif program == "rca":
        monkeypatch.setattr("sys.argv", words)
        main(rest)
    elif program == "python" and rest[0] == "-m":
        if rest[1] == "pytest":
            named = [word for word in rest[2:] if "/" in word]
            assert all((ROOT / word).exists() for word in named), named
            return
        monkeypatch.setattr("sys.argv", rest[1:])
        runpy.run_module(rest[1], run_name="__main__")
    elif program == "python":
        monkeypatch.setattr("sys.argv", rest)
        monkeypatch.syspath_prepend(str((ROOT / rest[0]).parent))
        runpy.run_path(str(ROOT / rest[0]), run_name="__main__")
    elif program == "bash":
        assert (ROOT / rest[0]).is_file()
    elif program == "source":
        assert rest == [".venv/bin/activate"]  # what scripts/environment.sh makes
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = {extra for word in rest for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
        assert extras <= set(setup["options.extras_require"])
    else:
        assert program in OTHERS, f"nothing here can tell whether {program} is understood"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for words in page_commands((ROOT / page).read_text()):
        parses = words[0] == "rca" or (words[0] == "python" and words[1:3] != ["-m", "pytest"])
        try:
            understand(words, monkeypatch)
        except Parsed:
            continue
        except SystemExit:
            pytest.fail(f"{page}: {' '.join(words)}\n{capsys.readouterr().err}")
        assert not parses, f"{page}: {' '.join(words)} ended before its words were read"


def test_commands_are_found_and_wrong_ones_refused(monkeypatch: pytest.MonkeyPatch):
    page = """
```bash
M=experiments; D="--data.dataset synthetic"
# a remark
rca fit $D \\
  --config $M/q.yaml # what
A=1 rca check && time rca labels
```
"""
    fit = ["rca", "fit", "--data.dataset", "synthetic", "--config", "experiments/q.yaml"]
    assert page_commands(page) == [fit, ["rca", "check"], ["time", "rca", "labels"]]
    assert sum(len(page_commands((ROOT / page).read_text())) for page in PAGES) > 100
    for wrong in (["rca", "fit", "--model.no_such 1"], ["rca", "labels", "--no_such", "1"], ["rca", "export"]):
        with pytest.raises(SystemExit):
            understand(wrong, monkeypatch)
    with pytest.raises(AssertionError):
        understand(["pip", "install", ".[no_such]"], monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_python_on_pages_imports_and_calls_what_there_is(page: str):
    for code in fenced((ROOT / page).read_text(), "python"):
        tree, imported = ast.parse(code), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                imported |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported:
                given = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(imported[node.func.id]).bind(*node.args, **given)


@pytest.mark.parametrize("page", PAGES)
def test_yaml_on_pages_is_yaml(page: str):
    for content in fenced((ROOT / page).read_text(), "yaml"):
        assert yaml.safe_load(content)
