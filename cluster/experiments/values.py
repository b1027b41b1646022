"""Mappings that people write (YAML, KEY=VALUE) as frozen dataclasses: every key known, every value of its
type.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cluster.errors import ConfigError

T = TypeVar("T")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError, with the line, for one that cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    return mapping(values, str(path))


def mapping(values: object, where: str) -> dict[str, Any]:
    """`values` if it is a mapping of names. Raises ConfigError, naming where it stands."""
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where} must be a mapping of names to values")
    return values


def check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises ConfigError for a key that does not exist."""
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{where} has no key {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}"
        )


def build(cls: type[T], values: object, where: str) -> T:
    """A dataclass from a mapping. Raises ConfigError for unknown keys and wrong types, naming key and place,
    and what the class raises."""
    given = mapping(values, where)
    hints, known = get_type_hints(cls), fields(cls)  # type: ignore[arg-type]
    check_keys(given, {field.name for field in known}, where)
    for field in known:
        if field.name not in given and field.default is MISSING:
            raise ConfigError(f"{where} needs a {field.name}")
    return cls(**{key: _typed(hints[key], value, f"{key} of {where}") for key, value in given.items()})


def parse_pairs(cls: type[Any], words: list[str], where: str) -> dict[str, Any]:
    """KEY=VALUE words as a mapping for `build`; lists are comma-separated. Raises ConfigError for a word
    that is not one and a key that does not exist."""
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not KEY=VALUE")
        values[key] = text
    hints = get_type_hints(cls)
    check_keys(values, {field.name for field in fields(cls)}, where)
    return {key: _parsed(hints[key], text) for key, text in values.items()}


def _parsed(hint: Any, text: str) -> Any:
    if get_origin(hint) is tuple:
        return [yaml.safe_load(part) for part in text.split(",") if part]
    return yaml.safe_load(text)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that a field declares: int, float, str, bool, None, tuples and unions of these."""
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _typed(next(option for option in options if option is not type(None)), value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; it must be a list")
        return tuple(_typed(get_args(hint)[0], each, where) for each in value)
    if hint in (int, float) and isinstance(value, str):
        value = _number(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint not in (int, float) and isinstance(value, hint):
        return value
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise ConfigError(f"{where} is {value!r}; it must be {kinds.get(hint, 'something else')}")


def _number(text: str) -> float | str:
    """YAML 1.1 takes 8e9 for text; people take it for a number."""
    try:
        return float(text)
    except ValueError:
        return text
