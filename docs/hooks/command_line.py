"""Writes the page of the command line from the parsers of `rca` themselves."""

from __future__ import annotations

import argparse
import contextlib
import html
import inspect
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any, NoReturn, get_args
from unittest import mock

import jsonargparse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from rca_lightning.cli.main import ABOUT, COMMANDS, EPILOG, main
from rca_lightning.cli.tasks import RCACLI
from rca_lightning.cli.trainer import Task

HELD_BACK = re.compile(r".*\.help$|--help$|-h$")
SECTIONS = {
    "model": "the network and how it is trained",
    "data": "the photographs",
    "memory": "the region memory and its clustering",
    "features": "the cache of features, behind a frozen backbone",
    "trainer": "all of [Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)",
}


class _Found(Exception):  # noqa: N818 - carries a parser out of its own help, and is no error
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "command_line.md", content=_page()))
    return files


def _page() -> str:
    lines = [
        "# Command line",
        "",
        "This page is made from the parsers of `rca` when the site is built, so it says what they say.",
        "",
        "Every option can stand in a YAML file as well (`--config FILE`), dots as levels: `--model.backbone resnet50` "
        "is `backbone: resnet50` under `model:`. What is typed wins over the file. `rca fit --print_config` prints all "
        "of them as such a file.",
        "",
        *_escape(EPILOG).splitlines(),
        "",
    ]
    seen: set[tuple[str, str, str]] = set()
    for subcommand in RCACLI.subcommands():
        lines += [f"## rca {subcommand}", "", ABOUT[subcommand], ""]
        lines += _described(_parser([subcommand]), seen, level=3, under=f"rca {subcommand}")
        for task in get_args(Task) if subcommand == "fit" else ():
            if task not in (RCACLI.task, "affinity"):
                lines += [f"### rca fit --task {task}", "", "As above, and:", ""]
                lines += _described(_parser(["fit", "--task", task]), seen, level=4, under=f"rca fit --task {task}")
    lines += ["## rca affinity", "", "```text", _text(["affinity"]).strip(), "```", ""]
    lines += _described(_parser(["affinity", "fit"]), seen, level=3, under="rca affinity fit")
    for command in COMMANDS:
        lines += _command([command], seen)
    return "\n".join(lines) + "\n"


def _command(words: list[str], seen: set[tuple[str, str, str]]) -> list[str]:
    """A command without a Trainer, and those below it."""
    lines = [f"{'#' * (len(words) + 1)} rca {' '.join(words)}", ""]
    parser = _parser(words)
    if parser is None:
        return [*lines, "```text", _text(words).strip(), "```", ""]
    lines += [_escape(parser.description or ""), ""]
    lines += _described(parser, seen if isinstance(parser, jsonargparse.ArgumentParser) else set(), level=9, under="")
    for action in parser._actions:
        if isinstance(action.choices, dict):
            lines += list(itertools.chain.from_iterable(_command([*words, name], seen) for name in action.choices))
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```", ""]
    return lines


def _parser(words: list[str]) -> argparse.ArgumentParser | None:
    """The parser that answers `rca ... --help`; None where the answer is a text of its own."""

    def found(parser: argparse.ArgumentParser, *args: Any) -> NoReturn:
        raise _Found(parser)

    with contextlib.ExitStack() as stack:
        for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            stack.enter_context(mock.patch.object(kind, "print_help", found))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch("sys.argv", ["rca"]))  # Lightning warns of words that it shall not read
        try:
            main([*words, "--help"])
        except _Found as answer:
            return answer.parser
        except SystemExit:
            pass
    return None


def _text(words: list[str]) -> str:
    """What `rca ... --help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def _described(
    parser: argparse.ArgumentParser | None, seen: set[tuple[str, str, str]], *, level: int, under: str
) -> list[str]:
    """Tables of the options, by what stands before the first dot; without those that stand further up the page.

    Args:
        parser: of the command.
        seen: options that stand on the page; those of this command are added.
        level: of the headings of the tables; above 6: none.
        under: the command, which makes the headings unique.
    """
    rows = [] if parser is None else [row for action in parser._actions for row in _rows(action)]
    new = [row for row in rows if row not in seen]
    lines = []
    for section, group in _by_section(new):
        about = f": {SECTIONS[section]}" if section in SECTIONS else ""
        if level <= 6:
            title = f"--{section}.*" if section else "options"
            lines += [f"{'#' * level} {under}: `{title}`" if section else f"{'#' * level} {under}: {title}", ""]
            lines += [f"{about[2:3].upper()}{about[3:]}.", ""] if about else []
        lines += ["| Option | Default | |", "| --- | --- | --- |"]
        lines += [f"| {name} | {default} | {text} |" for name, default, text in group]
        lines += [""]
    again = {_section(row[0]) for row in rows if row in seen} - {""}
    if again:
        lines += ["Further options, as above: " + ", ".join(f"`--{name}.*`" for name in sorted(again)) + ".", ""]
    seen.update(rows)
    return lines


def _by_section(rows: list[tuple[str, str, str]]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        sections.setdefault(_section(row[0]), []).append(row)
    order = ["", *SECTIONS]
    yield from sorted(sections.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _section(option: str) -> str:
    found = re.match(r"`--([\w-]+)\.", option)
    return found[1] if found else ""


def _rows(action: argparse.Action) -> list[tuple[str, str, str]]:
    """Option, default and meaning; none for what explains other options or loads a part of a file."""
    names = [name for name in action.option_strings if not name.endswith("+")]
    if isinstance(action.choices, dict) or (names and HELD_BACK.match(names[-1])) or action.help == argparse.SUPPRESS:
        return []
    if type(action).__name__ in ("ActionLink", "_ActionConfigLoad"):
        return []
    name = ", ".join(f"`{name}`" for name in names) or f"`{action.dest}`"
    default = action.default
    if action.required or (not names and action.nargs not in ("?", "*")):
        shown = "needed"
    elif default is None or default == argparse.SUPPRESS or (default is False and action.nargs == 0):
        shown = ""
    else:
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
    inherited = any(re.match(r"--(trainer\.|ckpt_path$|weights_only$)", name) for name in names)
    return [(name, shown, _meaning(action, sentences=2 if inherited else None))]


def _meaning(action: argparse.Action, *, sentences: int | None) -> str:
    """Help of an option, and its choices where the text does not name them."""
    text = " ".join(inspect.cleandoc(action.help or "").split())
    with contextlib.suppress(KeyError, ValueError, TypeError):
        text = text % {"default": action.default, "dest": action.dest, "prog": "rca", "type": action.type}
    if action.default not in (None, argparse.SUPPRESS):  # it has a column of its own
        text = re.sub(r"\s*\(default: [^)]*\)$|\s*Default: ``[^`]*``\.?$", "", text)
    text = re.sub(r"`([^`<]+?)\s*<http[^>]*>`_+", r"\1", text)  # a link of reStructuredText
    text = " ".join(re.split(r"(?<=\.)\s+(?=[A-Z])", text)[:sentences])
    text = _escape(text)
    chosen = getattr(action, "_typehint", None)
    choices = list(get_args(chosen)) if str(chosen).startswith("typing.Literal") else list(action.choices or ())
    missing = [str(choice) for choice in choices if str(choice) not in text]
    named = ", ".join(f"`{choice}`" for choice in choices)
    return f"{text.rstrip('.')}; one of {named}" if missing else text


def _escape(text: str) -> str:
    """Markdown of a help text: code stays code, everything else is read as plain words."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    plain = (html.escape(re.sub(r"([\\*_\[\]#|])", r"\\\1", part), quote=False) for part in parts[::2])
    code = (f"`{part.strip('`')}`" for part in parts[1::2])
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(plain, code, fillvalue="")))
