"""Policies by import path, as specs name them: "package.module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from cluster.errors import UnknownPolicy


def resolve(path: str) -> Callable[..., Any]:
    """The function that `path` names: a placement policy or a choice policy.

    Importing runs the module's code, so a spec is as trusted as a program. Raises UnknownPolicy, saying what
    is wrong, for a path that is not "module:function", leads to nothing, or to something that is no function.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name.isidentifier()):
        raise UnknownPolicy(
            f'policy {path!r} is not "module:function", such as "cluster.balance.heuristic:place"'
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownPolicy(f"policy {path!r}: {error}; is its folder on PYTHONPATH?") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        public = ", ".join(n for n in own if not n.startswith("_")) or "nothing"
        raise UnknownPolicy(f"policy {path!r}: {module_name} has no function {name}; it defines {public}")
    policy: Callable[..., Any] = found
    return policy
