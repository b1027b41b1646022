"""Libraries that only experiments need, and what to say where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from cluster.errors import ConfigError

LIBRARIES = {"polars": "polars", "matplotlib": "matplotlib"}
"""Module: distribution."""


def require_extras() -> None:
    """Raises ConfigError, saying how to install them, unless every library is there."""
    missing = [distribution for module, distribution in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"experiments need {', '.join(missing)}; install them with `pip install 'moemesh[experiments]'`"
        )
