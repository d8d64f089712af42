"""Image tags from the XML annotations of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.listing import require_regular_file
from rca_lightning.data.tagfile import Tags
from rca_lightning.errors import DataError

MAX_BYTES = 1 << 20
"""An annotation is a few kilobytes; a file above this size is not one."""


def read_xml_tags(path: Path, classes: ClassIndex) -> Tags:
    """Return the classes of the objects in one annotation, difficult and truncated ones included.

    The parser expands no entity and refuses a document type, so a file cannot reach beyond itself
    or blow up in memory.

    Args:
        path: the XML file.
        classes: the known classes.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not well-formed XML, larger than 1 MiB, has a DOCTYPE, or names an unknown class.
    """
    require_regular_file(path, remedy="unpack the annotations anew")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); allow it or remove the file") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES} bytes; that is not a VOC annotation, remove or replace it")
    parser = ElementTree.XMLParser(target=_NoDoctype(path))
    try:
        tree = ElementTree.fromstring(content, parser=parser)
    except DataError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two for encodings
        raise DataError(f"{path}: not well-formed XML ({error}); unpack the annotations anew") from error
    names = {(item.findtext("name") or "").strip() for item in tree.findall("object")}
    return tuple(sorted(classes.lookup(name, where=str(path)) for name in names))


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree, but stops at a document type: entities can be declared nowhere else."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError(f"{self._path}: has a DOCTYPE ({name}), which VOC annotations never have; remove it")
