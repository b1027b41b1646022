"""The model families we serve, one file each: a new file that binds FAMILY is found, nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.family import Family, Json


def families() -> tuple[Family, ...]:
    """Every family of this folder, by name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(sorted((module.FAMILY for module in modules), key=lambda family: family.name))


def find_family(config: Json) -> Family:
    """The family that serves config.json. Raises UnsupportedModel, naming what is served."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not (architectures or config.get("model_type")):
        raise BrokenCheckpoint("config.json names no architecture (`architectures`); is it a model's config?")
    known = families()
    for family in known:
        if set(architectures) & set(family.architectures):
            return family
        if not architectures and config.get("model_type") == family.name:
            return family
    asked = ", ".join(map(str, architectures)) or config["model_type"]
    served = ", ".join(name for family in known for name in family.architectures)
    raise UnsupportedModel(f"architecture {asked} is not supported; supported are {served}")


def family_named(name: str) -> Family:
    """The family stored in a ModelSpec. Raises UnsupportedModel if this version does not have it."""
    for family in families():
        if family.name == name:
            return family
    raise UnsupportedModel(f"model family {name} is not known to this version; update moemesh")
