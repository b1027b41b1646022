"""Mappings that people write (YAML, KEY=VALUE) as frozen dataclasses: every key known, every value of its
type. Errors name the key and, for what cluster/yamlfile.py has read, the line.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cluster.errors import ConfigError
from cluster.sizes import read_size
from cluster.yamlfile import at

T = TypeVar("T")
NO_KEY: Final = {"key": False}
"""Metadata of a field that a program sets, and nobody writes."""


def mapping(values: object, where: str) -> dict[str, Any]:
    """`values` if it is a mapping of names. Raises ConfigError, naming where it stands."""
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{at(values)}{where} must be a mapping of names to values")
    return values


def check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises ConfigError for a key that does not exist, with one that may have been meant."""
    unknown = sorted(set(values) - known)
    if unknown:
        meant = get_close_matches(unknown[0], sorted(known), 1)
        guess = f"did you mean {meant[0]}? " if meant else ""
        raise ConfigError(
            f"{at(values, unknown[0])}{where} has no key {', '.join(map(repr, unknown))}; "
            f"{guess}it has {', '.join(sorted(known))}"
        )


def build(cls: type[T], values: object, where: str, **defaults: Any) -> T:
    """A dataclass from a mapping. A field that is a dataclass itself is a mapping in it, whose missing keys
    are as in the field's default. Fields with `init=False` or the metadata NO_KEY are no keys.

    defaults: of fields, in place of those that the class declares.

    Raises ConfigError for unknown keys and wrong types, naming key and place, and what the class raises.
    """
    given = mapping(values, where)
    hints = get_type_hints(cls)
    known = {
        field.name: field
        for field in fields(cls)  # type: ignore[arg-type]
        if field.init and field.metadata.get("key", True)
    }
    check_keys(given, set(known), where)
    made = dict(defaults)
    for name, field in known.items():
        if name in given:
            default = defaults.get(name, _default(field))
            made[name] = _value(hints[name], given, name, where, default)
        elif name not in defaults and _default(field) is MISSING:
            raise ConfigError(f"{at(given)}{where} needs a {name}")
    return cls(**made)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _value(hint: Any, given: dict[str, Any], name: str, where: str, default: Any) -> Any:
    value, place = given[name], f"{name} of {where}"
    nested = _dataclass_of(hint)
    if nested is not None and isinstance(value, dict):
        own = _shallow(default) if isinstance(default, nested) else {}
        return build(nested, value, place, **own)
    try:
        return _typed(hint, _size(name, value), place)
    except ValueError as error:
        raise ConfigError(f"{at(given, name)}{place} is wrong: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{at(given, name)}{error}") from None


def _dataclass_of(hint: Any) -> type[Any] | None:
    """`hint`, or the one of a union, if it is a dataclass."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if is_dataclass(option) and isinstance(option, type)), None)


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value) if field.init}


def _size(name: str, value: Any) -> Any:
    """Fields that end in _bytes, or _bytes_per_s, take sizes. Raises ValueError."""
    sized = name.endswith(("_bytes", "_bytes_per_s")) and isinstance(value, str)
    return read_size(value) if sized else value


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
    """`value` as the type that a field declares: int, float, str, bool, an enum, None, tuples, mappings of
    names to one type, and unions of these."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _typed(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; it must be a list")
        return tuple(_typed(get_args(hint)[0], each, where) for each in value)
    if origin is Mapping:
        each_hint = get_args(hint)[1]
        given = mapping(value, where)
        return {key: _typed(each_hint, each, f"{key} of {where}") for key, each in given.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, value, where)
    return _scalar(hint, value, where)


def _member(hint: type[Enum], value: Any, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError:
        known = ", ".join(str(each.value) for each in hint)
        raise ConfigError(f"{where} is {value!r}; it is one of {known}") from None


def _scalar(hint: Any, value: Any, where: str) -> Any:
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
    what = kinds.get(hint, "a mapping of names to values" if is_dataclass(hint) else "something else")
    quotes = "; put it into quotes" if hint is str and isinstance(value, int | float) else ""
    raise ConfigError(f"{where} is {value!r}; it must be {what}{quotes}")


def _number(text: str) -> float | str:
    """YAML 1.1 takes 8e9 for text; people take it for a number."""
    try:
        return float(text)
    except ValueError:
        return text
