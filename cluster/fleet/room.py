"""Memory for two models on one machine, while the fleet changes from one to the other. Pure."""

from __future__ import annotations

from cluster.config import EngineConfig
from cluster.errors import OutOfMemoryBudget
from cluster.fleet.file import Host

OVERHEAD_BYTES = 256 << 20
"""What Ray's processes and an expert node take on a machine beside the experts, and a router beside its KV
cache."""


def needed_bytes(host: Host, engine: EngineConfig, experts_bytes: int) -> int:
    """What another model's node and routers may take on a host. experts_bytes: of all its experts."""
    node = min(host.memory_bytes, experts_bytes) + OVERHEAD_BYTES if host.memory_bytes else 0
    return node + host.routers * (engine.kv_bytes + OVERHEAD_BYTES)


def fits_beside(host: str, free: int, needed: int, held: int) -> bool:
    """Whether a host has memory for both models' nodes at once; False if the old one must end first, which
    gives back `held` bytes.

    Raises OutOfMemoryBudget, with numbers, where not even that is enough.
    """
    if free >= needed:
        return True
    if free + held >= needed:
        return False
    raise OutOfMemoryBudget(
        f"host {host} has {free} bytes of memory free, and {held} more without the node of the model that it "
        f"serves, but the other model needs {needed}; lower its memory_bytes in the fleet file, or "
        "end what uses the memory; else `moemesh down --fleet` and `up --fleet`"
    )
