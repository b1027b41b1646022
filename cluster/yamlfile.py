"""YAML files whose mappings remember where each key stands, so that an error can name the line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from cluster.errors import ConfigError


class Lined(dict[str, Any]):
    """A mapping of a file. line: where it begins, lines: where each of its keys is, counted from 1."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__()
        self.file, self.line = file, line
        self.lines: dict[str, int] = {}


def at(values: object, key: str = "") -> str:
    """ "FILE, line N: " of a key, or of the mapping where it lacks the key; "" where nobody knows."""
    if not isinstance(values, Lined):
        return ""
    return f"{values.file}, line {line_of(values, key)}: "


def line_of(values: object, key: str = "") -> int:
    """0 where nobody knows."""
    return values.lines.get(key, values.line) if isinstance(values, Lined) else 0


def load_yaml(path: Path) -> Any:
    """What a YAML file says; its mappings are `Lined`. Raises ConfigError, with the line, for a file that
    cannot be read and for a mapping with one key twice."""
    loader: _Loader | None = None
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.file = str(path)
        return loader.get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    file = ""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Keys are compared here: once merges (`<<`) are resolved, one that is written may follow a merged
        one of its name."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{self.file}, line {line}: {key.value!r} stands there a second time")
            seen.add(key.value)
        return node

    def construct_lined(self, node: yaml.MappingNode) -> Iterator[Lined]:
        """In two steps, as PyYAML wants it: a mapping may contain itself."""
        values = Lined(self.file, node.start_mark.line + 1)
        yield values
        values.update(cast("dict[str, Any]", self.construct_mapping(node)))
        values.lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_lined)
