"""Reads the keywords that photo programs keep in image files: XMP `dc:subject` and IPTC keywords."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.parsers import expat

from PIL import Image, ImageFile, IptcImagePlugin

from rca_lightning.data.images import open_image
from rca_lightning.errors import DataError, DatasetNotFoundError

MAX_XMP_BYTES = 1 << 20
"""Largest XMP packet that is read: longer ones hold previews or a history, and would be work for a stranger's file."""

MAX_KEYWORDS = 256
"""Most keywords of a file that are read."""

MAX_LETTERS = 100
"""Longest keyword that is read; longer ones are sentences, not tags."""

_SUBJECT = "http://purl.org/dc/elements/1.1/ subject"
_ITEM = "http://www.w3.org/1999/02/22-rdf-syntax-ns# li"
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_OF_TIFF = 700
_IPTC_KEYWORDS, _IPTC_CODING, _UTF8 = (2, 25), (1, 90), b"\x1b%G"


class _DoctypeError(Exception):
    """The packet declares a document type, as no XMP does and as attacks by entities must."""


def read_keywords(path: Path) -> tuple[str, ...]:
    """Read the keywords of an image file, each once, those of XMP first.

    Only the head of the file is read. What is damaged counts as absent: pictures without keywords are usual.

    Args:
        path: an image file.

    Returns:
        The keywords without surrounding and repeated white space; empty where there are none.
    """
    try:
        with open_image(path) as image:
            found = [*_xmp_keywords(image), *_iptc_keywords(image)]
    except (DataError, DatasetNotFoundError):
        return ()
    return tuple(dict.fromkeys(found))[:MAX_KEYWORDS]


def parse_xmp(packet: bytes) -> list[str]:
    """Keywords of an XMP packet: the items of `dc:subject`; none of a packet that is too large or no XML.

    Example:
        >>> parse_xmp(
        ...     b'<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:d="http://purl.org/dc/elements/1.1/">'
        ...     b"<d:subject><r:Bag><r:li>dog</r:li><r:li>red  car</r:li></r:Bag></d:subject></r:RDF>"
        ... )
        ['dog', 'red car']
    """
    if len(packet) > MAX_XMP_BYTES:
        return []
    keywords: list[str] = []
    text: list[str] = []
    inside = {_SUBJECT: 0, _ITEM: 0}

    def start(name: str, _: object) -> None:
        if name in inside:
            inside[name] += 1
            text.clear()

    def end(name: str) -> None:
        if name == _ITEM and inside[_SUBJECT]:
            keywords.append("".join(text))
        if name in inside:
            inside[name] -= 1

    def characters(data: str) -> None:
        if inside[_SUBJECT] and inside[_ITEM]:
            text.append(data)

    def refuse(*_: object) -> None:
        raise _DoctypeError

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \t\r\n"), True)
    except (expat.ExpatError, _DoctypeError, ValueError, LookupError):
        return []
    return _clean(keywords)


def _xmp_keywords(image: Image.Image) -> list[str]:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if packet is None:  # where Pillow keeps it in earlier versions, and that of a TIFF
        segments = getattr(image, "applist", ())
        packets = (content for name, content in segments if name == "APP1" and content.startswith(_XMP_OF_JPEG))
        packet = next((content[len(_XMP_OF_JPEG) :] for content in packets), None)
    if packet is None:
        packet = getattr(image, "tag_v2", {}).get(_XMP_OF_TIFF)
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "surrogatepass")
    return parse_xmp(packet) if isinstance(packet, bytes) else []


def _iptc_keywords(image: Image.Image) -> list[str]:
    if not isinstance(image, ImageFile.ImageFile):
        return []
    try:
        fields = IptcImagePlugin.getiptcinfo(image) or {}
    except Exception:  # of a damaged block each format has errors of its own
        return []
    values = fields.get(_IPTC_KEYWORDS, [])
    coding = "utf-8" if fields.get(_IPTC_CODING) == _UTF8 else None
    return _clean(_decode(value, coding) for value in (values if isinstance(values, list) else [values]))


def _decode(value: bytes, coding: str | None) -> str:
    try:
        return value.decode(coding or "utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _clean(keywords: Iterable[str]) -> list[str]:
    """Keywords of one line each; a list that was written into one keyword is taken apart."""
    parts = (" ".join(part.split()) for keyword in keywords for part in keyword.split(";"))
    return [part for part in parts if part and part.isprintable() and len(part) <= MAX_LETTERS][:MAX_KEYWORDS]
