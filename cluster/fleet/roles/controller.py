"""The controller as a process. Its epoch is in a file, so that it is higher after every restart."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig, LogFormat
from cluster.controller.orders import Orders
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.fleet.folder import ORDERS
from cluster.fleet.roles.process import log_to_file


@dataclass(frozen=True)
class ControllerPlace:
    """port: the same after a restart, since roles know no other; epoch_file: outlives the process, as does a
    file beside it with what operators asked for. table: the first one; its epoch does not count."""

    shape: Shape
    host: str
    port: int
    epoch_file: str
    logs: str
    config: ControllerConfig = ControllerConfig()  # noqa: RUF009  frozen
    table: PlacementTable | None = None
    log_format: LogFormat = LogFormat.text


class ControllerRole:
    """Construction starts it; `shutdown` ends it for good."""

    def __init__(self, place: ControllerPlace) -> None:
        log_to_file(place.logs, "controller", place.log_format)
        epoch = next_epoch(Path(place.epoch_file))
        table = None if place.table is None else replace(place.table, epoch=epoch)
        orders = Path(place.epoch_file).with_name(ORDERS)
        self._service = ControllerService(
            place.shape,
            epoch,
            place.host,
            place.port,
            place.config,
            table,
            orders=read_orders(orders),
            keep=lambda given: replace_file(orders, given.to_text()),
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
