"""YAML files in which no key is written twice."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from rca_lightning.errors import DataError


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a repeated key: of two rows with one name the first would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there already", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        path: the file.
        what: what it is to the user, for the errors.

    Raises:
        DataError: there is no such file, it is no YAML, or it holds something else than a mapping.
    """
    try:
        content = yaml.load(path.read_text(), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} {path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise DataError(f"{what} {path}: is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{what} {path}: must hold keys and values")
    return content
