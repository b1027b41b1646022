"""The model that comes with the package."""

from __future__ import annotations

from importlib import resources

from cluster.library.reader import Library

BUNDLED = "reference-int8"


def open_model(model: str = "") -> Library:
    """A library by its folder; "" is the bundled one. Raises LibraryError."""
    if model:
        return Library.open(model)
    return Library.open(str(resources.files("cluster.library") / "data" / BUNDLED))
