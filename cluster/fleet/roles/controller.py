"""The controller as a process. Its epoch is in a file, so that it is higher after every restart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.config import LogFormat
from cluster.controller.orders import Orders
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.fleet.folder import ORDERS
from cluster.fleet.roles.process import log_to_file


@dataclass(frozen=True)
class ControllerPlace:
    """port: the same after a restart, since roles know no other; epoch_file: outlives the process, as does a
    file beside it with what operators asked for."""

    shape: Shape
    host: str
    port: int
    epoch_file: str
    logs: str
    log_format: LogFormat = LogFormat.text


class ControllerRole:
    """Construction starts it; `shutdown` ends it for good."""

    def __init__(self, place: ControllerPlace) -> None:
        log_to_file(place.logs, "controller", place.log_format)
        epoch = next_epoch(Path(place.epoch_file))
        file = Path(place.epoch_file).with_name(ORDERS)
        self._service = ControllerService(
            place.shape,
            epoch,
            place.host,
            place.port,
            orders=read_orders(file),
            keep=lambda orders: replace_file(file, orders.to_text()),
        )
        self._service.start()

    def pid(self) -> int:
        return os.getpid()

    def shutdown(self) -> None:
        self._service.shutdown()


def next_epoch(file: Path) -> int:
    """One more than the number in `file`, which is replaced at once or not at all. Starts at 1."""
    try:
        epoch = int(file.read_text()) + 1
    except FileNotFoundError:
        epoch = 1
    replace_file(file, str(epoch))
    return epoch


def read_orders(file: Path) -> Orders:
    """None were given if there is no file. Raises ConfigError if it cannot be read."""
    try:
        return Orders.from_text(file.read_text())
    except FileNotFoundError:
        return Orders()


def replace_file(file: Path, text: str) -> None:
    """At once or not at all."""
    draft = file.with_name(f"{file.name}.tmp")
    draft.write_text(text)
    draft.replace(file)
