"""What a device, a link, a router and a model cost. Rates and sizes only; nothing here has state."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cluster.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A class of devices as a roofline with a link and a store.

    ops: int8 operations per second (a multiply-add is two). read: bytes per second from memory. memory: bytes
    for experts. message_s: seconds that a message costs however small it is. latency_s: one way between
    device and router; bandwidth: bytes per second of that link. storage: bytes per second from its own disk.

    Raises ConfigError, naming the field.
    """

    ops: float
    read: float
    memory: int
    message_s: float
    latency_s: float
    bandwidth: float
    storage: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 or (value == 0 and field.name in ("message_s", "latency_s", "memory"))):
                raise ConfigError(f"{field.name} of a device is {value}; it must be above 0")

    def service_s(self, rows: list[int], model: Model) -> float:
        """Seconds to compute one message with so many rows for each of its experts."""
        each = (max(model.expert_bytes / self.read, n * model.ops_per_row / self.ops) for n in rows if n)
        return self.message_s + sum(each)

    def row_s(self, model: Model, rows: float) -> float:
        """Seconds that a row of an expert with `rows` (above 0) at a time is computed for."""
        return max(model.expert_bytes / self.read, rows * model.ops_per_row / self.ops) / rows

    def carry_s(self, model: Model) -> float:
        """Seconds that a row is on the link, there and back."""
        return (model.request_bytes + model.reply_bytes) / self.bandwidth

    def row_rate(self, model: Model, rows: float) -> float:
        """Rows per second, computed and carried: the speed that counts for balance."""
        return 1 / (self.row_s(model, rows) + self.carry_s(model))


@dataclass(frozen=True)
class Model:
    """The shape of a model's experts. hidden, width: of the gate, up and down matrices; bits a weight."""

    hidden: int = 2048
    width: int = 1024
    bits: float = 8.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(
                    f"{field.name} of the model is {getattr(self, field.name)}; it must be above 0"
                )

    @property
    def expert_bytes(self) -> int:
        return int(3 * self.hidden * self.width * self.bits / 8)

    @property
    def ops_per_row(self) -> int:
        return 6 * self.hidden * self.width

    @property
    def request_bytes(self) -> int:
        """A row on its way to a node: int8 and a scale."""
        return self.hidden + 4

    @property
    def reply_bytes(self) -> int:
        """A row of one expert on its way back, in bf16."""
        return 2 * self.hidden


@dataclass(frozen=True)
class Router:
    """layer_s + row_s · rows: attention, norms and gate of one layer, seconds. step_s: head, sampling and
    scheduling of a step. bandwidth: bytes per second of the router's own link, in each direction.
    send_s, take_s: seconds of its own that it needs to send a message, and to take in its reply."""

    layer_s: float = 200e-6
    row_s: float = 5e-6
    step_s: float = 1e-3
    bandwidth: float = 1.25e9
    send_s: float = 0.0
    take_s: float = 0.0

    def __post_init__(self) -> None:
        times = (self.layer_s, self.row_s, self.step_s, self.send_s, self.take_s)
        if min(times) < 0 or not self.bandwidth > 0:
            raise ConfigError("a router's times must be 0 or more and its bandwidth above 0")
