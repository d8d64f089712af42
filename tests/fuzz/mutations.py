"""Damage to files: what disks and networks do to them, and what somebody might do on purpose."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable

MOST_BYTES = 1 << 18
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
_TOKENS = [
    *("", "0", "-1", "1e308", "-1e308", "NaN", "Infinity", "null", "true", "2147483648", "-9223372036854775809"),
    *("9" * 400, "1e9", "0.5", '""', "[]", "{}", "[" * 2000, "]" * 3, "{" * 40, '{"a":' * 1500, '"size"', '"counts"'),
    *("../../etc/passwd", "/etc/passwd", "..\\..\\a", "C:\\a", "..", ".", "a\0b", "\0", "\ufeff", "\ud800", "%00"),
    *("\u2028", "\x85", "\r", "\n\n", "\t", ",", ";", '"', "'", "\\", "<", ">", "&lt;", "&a;", "&#0;", "&#xD800;"),
    *(
        '<!DOCTYPE a [<!ENTITY a "b">]>',
        '<!DOCTYPE a SYSTEM "/etc/passwd">',
        "<![CDATA[",
        "]]>",
        "<?xml?>",
        "<a>" * 500,
    ),
    *(
        '<?xml version="1.0" encoding="utf-7"?>',
        '<?xml version="1.0" encoding="euc-jp"?>',
        "\\ud800",
        "\\u0000",
        "e" * 999,
    ),
    *("PPYY" * 300, "oooooooooooo", "cat", "dog;cat", "image,tags", "a.jpg", ".jpg", "a.JPG.jpg", "é", "a" * 5000),
]
_TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+|[^\sA-Za-z0-9]")

Mutation = Callable[[bytes, random.Random, list[bytes]], bytes]


def flip_bits(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16]) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def flip_in_the_head(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return flip_bits(content[:64], rng, others) + content[64:]


def cut(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def cut_out(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice([1, 2, 7, 64, 1000]) :]


def zeros(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start, length = rng.randrange(len(content) + 1), rng.choice([1, 4, 32, 512])
    return content[:start] + bytes(length) + content[start + length :]


def extreme_number(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    width, order = rng.choice([1, 2, 4]), rng.choice(["little", "big"])
    number = (rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, order)
    start = rng.randrange(min(len(content), rng.choice([64, 512, MOST_BYTES])) + 1)
    return content[:start] + number + content[start + width :]


def splice(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def repeat(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start = rng.randrange(len(content) + 1)
    return (
        content[:start] + content[start : start + rng.choice([4, 64, 999])] * rng.choice([2, 8, 64]) + content[start:]
    )


def edit_token(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    places = [match.span() for match in _TOKEN.finditer(content)]
    for start, end in sorted(rng.sample(places, min(len(places), rng.choice([1, 1, 2, 5]))), reverse=True):
        token = rng.choice(_TOKENS).encode("utf-8", errors="surrogatepass")
        content = content[:start] + rng.choice([token, token + content[start:end], b""]) + content[end:]
    return content


def swap_tokens(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    places = [match.span() for match in _TOKEN.finditer(content)]
    if len(places) < 2:
        return content
    (a, b), (c, d) = sorted(rng.sample(places, 2))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


BYTES: list[Mutation] = [flip_bits, flip_in_the_head, cut, cut_out, zeros, extreme_number, splice, repeat]
TEXT: list[Mutation] = [edit_token, edit_token, edit_token, swap_tokens, cut, cut_out, flip_bits, splice, repeat]


def mutate(content: bytes, rng: random.Random, others: list[bytes], kinds: list[Mutation]) -> bytes:
    """One to four mutations, one after the other."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        content = rng.choice(kinds)(content, rng, others)[:MOST_BYTES]
    return content


def mutate_inside(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Damage within one member of a zip archive, whose lengths and checksums are right again afterwards."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = rng.randrange(len(members))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for number, (info, inside) in enumerate(members):
            if number == chosen:
                inside = mutate(inside, rng, [other for _, other in members], rng.choice([BYTES, TEXT]))
            archive.writestr(info, inside)
    return written.getvalue()
