"""Every error a user can meet. Each carries the gRPC status code the gateway answers with.

    MoemeshError                     INTERNAL
    ├── InvalidRequest               INVALID_ARGUMENT     the request itself is wrong
    ├── UnknownModel                 NOT_FOUND
    ├── Unsupported                  UNIMPLEMENTED        part of a protocol that this server does not offer
    ├── Unauthenticated              UNAUTHENTICATED      no key, or none that is known
    ├── Forbidden                    PERMISSION_DENIED    the key lacks the scope
    ├── ConfigError                  INVALID_ARGUMENT     a fleet, a load or a spec that makes no sense
    │   ├── UnknownPolicy            NOT_FOUND            a policy's name leads to nothing that can be called
    │   └── UnknownNode              NOT_FOUND            no expert node has this name
    ├── MissingExtra                 FAILED_PRECONDITION  an optional dependency is not installed
    ├── Overloaded                   RESOURCE_EXHAUSTED   try again after `retry_after_s`
    │   └── RateLimited              RESOURCE_EXHAUSTED   the key's own limit, whatever others do
    ├── TooLarge                     RESOURCE_EXHAUSTED   a request beyond the limit of bytes
    ├── SlowReader                   RESOURCE_EXHAUSTED   a client that does not read its answer
    ├── Unavailable                  UNAVAILABLE          not ready, draining, or a peer is gone
    │   ├── NodeLost                 UNAVAILABLE          an expert node died and did not come back in time
    │   └── Tampered                 UNAVAILABLE          bytes of a sealed link were changed or lost
    ├── DeadlineExceeded             DEADLINE_EXCEEDED    it took longer than it may
    ├── RequestAborted               CANCELLED
    ├── NonFinite                    INTERNAL             NaN or Inf in the activations of a layer
    ├── RouterLost                   INTERNAL             every router that computed the request was lost
    ├── OtherWeights                 ABORTED              it began with another model: ask anew
    ├── ModelError                   FAILED_PRECONDITION  a checkpoint we cannot serve
    │   ├── UnsupportedModel         FAILED_PRECONDITION  architecture, rope type, bias, activation
    │   └── BrokenCheckpoint         FAILED_PRECONDITION  missing shard, NaN weights, tokenizer mismatch
    ├── LibraryError                 FAILED_PRECONDITION  a packed library that cannot be used
    │   ├── CorruptBlob              DATA_LOSS            digest or length of a blob does not match
    │   ├── IncompleteLibrary        FAILED_PRECONDITION  a folder lacks blobs that its use needs
    │   └── CannotStore              RESOURCE_EXHAUSTED   a folder that takes no more blobs: it is full
    ├── OutOfMemoryBudget            FAILED_PRECONDITION  a budget is below what the work needs
    ├── ProtocolError                FAILED_PRECONDITION  a peer speaks another protocol, numerics or library
    └── ClusterError                 FAILED_PRECONDITION  up, down, status: what the operator must do
        ├── AlreadyUp                ALREADY_EXISTS
        ├── NotUp                    FAILED_PRECONDITION
        ├── PortInUse                FAILED_PRECONDITION
        ├── StartFailed              UNAVAILABLE          a process died or was not ready in time
        └── HostFailed               UNAVAILABLE          a machine of a fleet: no ssh, or its command failed

Messages are one line: what was wrong, then what to do. The command line prints them as they are.
"""

from __future__ import annotations

from typing import ClassVar


class MoemeshError(Exception):
    code: ClassVar[str] = "INTERNAL"


class InvalidRequest(MoemeshError):
    code = "INVALID_ARGUMENT"


class UnknownModel(MoemeshError):
    code = "NOT_FOUND"


class Unsupported(MoemeshError):
    code = "UNIMPLEMENTED"


class Unauthenticated(MoemeshError):
    code = "UNAUTHENTICATED"


class Forbidden(MoemeshError):
    code = "PERMISSION_DENIED"


class ConfigError(MoemeshError):
    code = "INVALID_ARGUMENT"


class UnknownPolicy(ConfigError):
    code = "NOT_FOUND"


class UnknownNode(ConfigError):
    code = "NOT_FOUND"


class MissingExtra(MoemeshError):
    code = "FAILED_PRECONDITION"


class Overloaded(MoemeshError):
    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    pass


class TooLarge(MoemeshError):
    code = "RESOURCE_EXHAUSTED"


class SlowReader(MoemeshError):
    code = "RESOURCE_EXHAUSTED"

    @classmethod
    def after(cls, seconds: float) -> SlowReader:
        return cls(f"nothing of the answer was read for {seconds:g} s; read faster, or ask for less at once")


class Unavailable(MoemeshError):
    code = "UNAVAILABLE"


class NodeLost(Unavailable):
    pass


class Tampered(Unavailable):
    """The connection ends; what was asked on it is asked again on the next one."""


class DeadlineExceeded(MoemeshError):
    code = "DEADLINE_EXCEEDED"


class RequestAborted(MoemeshError):
    code = "CANCELLED"


class NonFinite(MoemeshError):
    """NaN or Inf met at the input of `layer` (the number of layers: the final norm; -1: told by a peer)."""

    layer = -1

    @classmethod
    def at(cls, layer: int) -> NonFinite:
        error = cls(
            f"NaN or Inf in the activations at layer {layer}; "
            "the model's weights or its quantisation are broken"
        )
        error.layer = layer
        return error


class RouterLost(MoemeshError):
    """Not UNAVAILABLE, which clients take for a reason to try again: the request may be why."""


class OtherWeights(MoemeshError):
    """Not UNAVAILABLE, after which clients call again for as long as they like: this gateway never will."""

    code = "ABORTED"


class ModelError(MoemeshError):
    code = "FAILED_PRECONDITION"


class UnsupportedModel(ModelError):
    pass


class BrokenCheckpoint(ModelError):
    pass


class LibraryError(MoemeshError):
    code = "FAILED_PRECONDITION"


class CorruptBlob(LibraryError):
    code = "DATA_LOSS"


class IncompleteLibrary(LibraryError):
    pass


class CannotStore(LibraryError):
    code = "RESOURCE_EXHAUSTED"


class OutOfMemoryBudget(MoemeshError):
    code = "FAILED_PRECONDITION"


class ProtocolError(MoemeshError):
    code = "FAILED_PRECONDITION"


class ClusterError(MoemeshError):
    code = "FAILED_PRECONDITION"


class AlreadyUp(ClusterError):
    code = "ALREADY_EXISTS"


class NotUp(ClusterError):
    pass


class PortInUse(ClusterError):
    pass


class StartFailed(ClusterError):
    code = "UNAVAILABLE"


class HostFailed(ClusterError):
    code = "UNAVAILABLE"


def error_from_wire(name: str, message: str) -> MoemeshError:
    """Rebuild an error that travelled between our processes as (class name, message).

    An unknown name becomes a MoemeshError.
    """
    for cls in _all_errors():
        if cls.__name__ == name:
            return cls(message)
    return MoemeshError(message)


def _all_errors() -> list[type[MoemeshError]]:
    found, queue = [], [MoemeshError]
    while queue:
        cls = queue.pop()
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found
