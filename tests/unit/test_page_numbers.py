"""Measured numbers of the README, and of pages that repeat them, are those of committed files that runs have written.

tests/page_numbers.yaml says which number is which. Code, targets of links and comments hold no measurements.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAP = yaml.safe_load((ROOT / "tests" / "page_numbers.yaml").read_text())
PAGES: dict[str, dict[str, Any]] = MAP["pages"]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}

NO_PROSE = re.compile(r"^ *```.*?^ *```|<!--.*?-->|`[^`]*`|\]\([^)]*\)|https?://\S+", flags=re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)[-+]?\d+(?:,\d{3})*(?:\.\d+)?")
WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|half|a quarter"
TIMES = "second|minute|hour"
UNITS = rf"(?:processor )?(?:{TIMES})s?|ms|s|[KMG]i?B|%|times|x(?! \d)|points?|mIoU|(?:images|photographs) a second"
# What is measured wherever it stands: a number, in digits or in words, with a unit.
WITH_UNIT = re.compile(
    rf"(?:{NUMBER.pattern} ?|(?i:\b(?:{WORDS}))(?: (?:of )?an?)? )(?:{UNITS})(?![\w/])|about an? (?:{TIMES})\b"
)
SOURCE = re.compile(r"(?:(?P<factor>\d+) x )?(?:mean of (?P<runs>\d+) in )?(?P<file>\S+) @ (?P<key>\S+)")


def section(text: str, title: str) -> tuple[int, int]:
    """Where the section of a title begins and ends."""
    start = text.index(f"\n## {title}\n") + 1
    end = text.find("\n## ", start)
    return start, end if end > 0 else len(text)


def pattern(words: str) -> re.Pattern[str]:
    """Finds words however their lines are broken; each `{}` of them is a number."""
    parts = [r"\s+".join(re.escape(word) for word in re.split(r"\s+", part)) for part in words.split("{}")]
    return re.compile(rf"({NUMBER.pattern})".join(parts))


def spelt(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def entries(found: Any, key: str) -> Iterator[Any]:
    """What stands at a key; of a list every entry that matches."""
    name, _, rest = key.partition("/")
    if isinstance(found, list):
        conditions = dict(condition.split("=") for condition in name.split("&"))
        for entry in found:
            if all(fnmatchcase(spelt(entry[of]), wanted) for of, wanted in conditions.items()):
                yield from entries(entry, rest) if rest else [entry]
    else:
        yield from entries(found[name], rest) if rest else [found[name]]


def files(source: str) -> list[Path]:
    """The files of a source."""
    folder, _, name = SOURCE.fullmatch(source)["file"].partition("/")
    found = sorted((ROOT / MAP["folders"][folder]).glob(name))
    assert found, f"{source}: no such file"
    return found


def values(source: str) -> list[float]:
    """The numbers that a source names, one for each run."""
    parts = SOURCE.fullmatch(source)
    found = []
    for file in files(source):
        content = json.loads(file.read_text())
        key = re.sub(r"<(.+?)>", lambda inner: str(next(entries(content, inner[1]))), parts["key"])  # noqa: B023
        found += [float(value) * int(parts["factor"] or 1) for value in entries(content, key)]
    assert len(found) == int(parts["runs"] or 1), f"{source}: {len(found)} values"
    return found


def sources(of: str | list[str]) -> list[str]:
    return [of] if isinstance(of, str) else of


def expected(of: str | list[str], printed: str) -> str:
    """The number of a source, with as many decimals as are printed."""
    decimals = len(printed.partition(".")[2])
    return f"{statistics.fmean(value for source in sources(of) for value in values(source)):.{decimals}f}"


def measured(page: str, text: str) -> Iterator[re.Match[str]]:
    """Numbers that need a source: all of the section, and in the README those with a unit."""
    prose = NO_PROSE.sub(lambda found: " " * len(found[0]), text)
    start, end = section(text, PAGES[page]["section"])
    yield from (found for found in NUMBER.finditer(prose) if start <= found.start() < end)
    if page == "README.md":
        yield from WITH_UNIT.finditer(prose)


def problems(page: str, text: str) -> list[str]:
    """What is wrong with the numbers of a page, a line each."""
    wrong, known = [], []
    for entry in PAGES[page]["measured"]:
        places = list(pattern(entry["words"]).finditer(text))
        if len(places) != 1:
            wrong.append(f"{entry['words']!r} stands there {len(places)} times")
            continue
        for index, source in enumerate(entry["from"], start=1):
            printed = places[0][index]
            known.append(places[0].span(index))
            if printed != (right := expected(source, printed)):
                wrong.append(f"{entry['words']!r} has {printed}, {source} {right}")
    for phrase in PAGES[page]["no_measurements"]:
        places = list(pattern(phrase).finditer(text))
        known += [place.span() for place in places]
        if not places:
            wrong.append(f"no measurement {phrase!r} is not there")
    for number in measured(page, text):
        if not any(number.start() < end and start < number.end() for start, end in known):
            around = text[max(number.start() - 40, 0) : number.end() + 20]
            wrong.append(f"{' '.join(around.split())!r} has no source")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_numbers_are_those_of_the_files(page: str):
    assert problems(page, TEXTS[page]) == []


def printed_numbers() -> Iterator[tuple[str, int, str]]:
    for page, parts in PAGES.items():
        for entry in parts["measured"]:
            place = pattern(entry["words"]).search(TEXTS[page])
            assert place is not None, entry["words"]
            assert place.re.groups == len(entry["from"]), entry["words"]
            for index in range(1, place.re.groups + 1):
                yield page, place.end(index), place[index]


def test_every_number_that_is_changed_by_its_last_digit_is_found():
    numbers = list(printed_numbers())
    assert len(numbers) > 30
    for page, end, printed in numbers:
        text = TEXTS[page]
        changed = text[: end - 1] + str((int(printed[-1]) + 1) % 10) + text[end:]
        assert len(problems(page, changed)) == 1, printed


@pytest.mark.parametrize(
    "sentence",
    [
        "It has 58.1 there.",
        "| another row | 12.3 |",
        "Gains of +3.",
        "It takes ten minutes.",
        "A third of it in two processor minutes.",
    ],
)
def test_number_without_a_source_is_found_in_the_section(sentence: str):
    text = TEXTS["README.md"]
    _, end = section(text, PAGES["README.md"]["section"])
    changed = f"{text[:end]}\n{sentence}\n{text[end:]}"
    assert any("has no source" in line for line in problems("README.md", changed))


@pytest.mark.parametrize(
    "sentence",
    [
        "It takes 12 s.",
        "It takes ten minutes of one core.",
        "It takes a quarter of an hour.",
        "A photograph takes about a second.",
        "That is 24 x faster.",
        "That needs 2.3 GiB.",
        "That gives 3.3 points.",
        "It has 63.5 mIoU.",
    ],
)
def test_measurement_without_a_source_is_found_anywhere(sentence: str):
    changed = f"{TEXTS['README.md']}\n{sentence}\n"
    assert [line.endswith("has no source") for line in problems("README.md", changed)] == [True]


@pytest.mark.parametrize("sentence", ["```bash\nrun --minutes 10 s\n```", "`12 s`", "[page](runs/12 s)", "ResNet-50 s"])
def test_code_links_and_names_are_no_measurements(sentence: str):
    assert problems("README.md", f"{TEXTS['README.md']}\n{sentence}\n") == []


def test_words_that_are_gone_are_found():
    changed = TEXTS["README.md"].replace("| RCA, dense CRF |", "| RCA, with CRF |")
    assert any("stands there 0 times" in line for line in problems("README.md", changed))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_files_are_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = {
        file.relative_to(ROOT).as_posix()
        for parts in PAGES.values()
        for entry in parts["measured"]
        for of in entry["from"]
        for source in sources(of)
        for file in files(source)
    }
    assert len(named) > 20
    assert named <= set(listed.stdout.splitlines())
