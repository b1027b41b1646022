"""The devices that a placement is made for: what each can compute, hold and send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from cluster.types import NodeId

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Devices:
    """Unequal devices; index d is the same device in every array. The arrays are kept read-only.

    names: unique.
    speed: [devices] float64 > 0, expert rows per second. Only ratios matter to a placement.
    memory: [devices] int64 ≥ 0, bytes for experts over all layers.
    bandwidth: [devices] float64 > 0, bytes per second between the device and the routers.
    site: [devices] int64, devices of one site have fast links between them.

    Raises ConfigError, naming the device, for anything else.
    """

    names: tuple[NodeId, ...]
    speed: Floats
    memory: Integers
    bandwidth: Floats
    site: Integers

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError("a fleet needs at least one device")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"a device appears twice in {list(self.names)}; names must be unique")
        for field, dtype in _TYPES.items():
            object.__setattr__(self, field, read_only(getattr(self, field), dtype))
            self._check_shape(field)
        self._check("speed", self.speed > 0, "above 0 rows per second")
        self._check("bandwidth", self.bandwidth > 0, "above 0 bytes per second")
        self._check("memory", self.memory >= 0, "0 or more bytes")
        self._check("speed", np.isfinite(self.speed), "finite")

    def _check_shape(self, field: str) -> None:
        shape = getattr(self, field).shape
        if shape != (len(self.names),):
            raise ConfigError(f"{field} of the fleet has shape {shape}; it must be [{len(self.names)}]")

    def _check(self, field: str, fine: npt.NDArray[np.bool_], allowed: str) -> None:
        for device in np.flatnonzero(~fine):
            value = getattr(self, field)[device]
            raise ConfigError(f"{field} of device {self.names[device]} is {value}; it must be {allowed}")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Devices({len(self)}, speed {self.speed.sum():g} rows/s, {self.memory.sum()} bytes)"


_TYPES = {"speed": np.float64, "memory": np.int64, "bandwidth": np.float64, "site": np.int64}


def read_only(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """C-contiguous view of `values`, converted to `dtype` where it must be, that cannot be written through.

    Raises ConfigError where a conversion would change a value (a fraction as an integer, NaN as one).
    """
    given = np.asarray(values)
    converted = np.ascontiguousarray(given, dtype=dtype)
    if given.dtype.kind == "f" and converted.dtype.kind in "iu" and not np.array_equal(given, converted):
        raise ConfigError(f"values that must be whole numbers are not: {given.ravel()[:4].tolist()} …")
    view = converted.view()
    view.flags.writeable = False
    return view


def equal_devices(count: int, memory: int, *, speed: float = 1.0, bandwidth: float = 125e6) -> Devices:
    """`count` equal devices d0, d1 … of one site: rows per second, bytes, bytes per second of the link."""
    return devices_with(np.full(count, speed), np.full(count, memory), bandwidth=bandwidth)


def devices_with(
    speed: Sequence[float] | Floats, memory: Sequence[int] | Integers, *, bandwidth: float = 125e6
) -> Devices:
    """Devices d0, d1 … of one site with these speeds (rows per second) and memories (bytes)."""
    count = len(speed)
    names = tuple(NodeId(f"d{index}") for index in range(count))
    links, sites = np.full(count, bandwidth), np.zeros(count, np.int64)
    return Devices(names, np.asarray(speed, np.float64), np.asarray(memory, np.int64), links, sites)
