"""Routing traces: which experts every token chose. One Parquet file, described in docs/experiments.md.

A row is one token at one sparse layer. Columns: step, time, request, position, layer, experts, weights. What
is true of the whole file is JSON under the key `moemesh.trace` of the file's metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster.errors import InvalidRequest
from cluster.experiments.routing import Header, Trace
from cluster.router.recorder import GateRecord
from cluster.types import RequestId

VERSION = 1
METADATA_KEY = "moemesh.trace"
PART_ROWS = 1 << 18
"""Rows that wait in memory before they are written."""


def frame(trace: Trace) -> pl.DataFrame:
    """The rows of a file: ordered by token, then layer."""
    tokens, layers = len(trace), len(trace.header.layers)
    top_k = trace.header.top_k

    def repeated(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.repeat(values, layers)

    return pl.DataFrame(
        {
            "step": repeated(trace.step.astype(np.uint32)),
            "time": repeated(trace.time.astype(np.float64)),
            "request": repeated(trace.request.astype(np.uint32)),
            "position": repeated(trace.position.astype(np.uint32)),
            "layer": np.tile(np.array(trace.header.layers, np.uint16), tokens),
            "experts": trace.ids.reshape(-1, top_k),
            "weights": trace.weights.reshape(-1, top_k),
        },
        schema=schema(top_k),
    )


def schema(top_k: int) -> dict[str, Any]:
    """Column: polars type."""
    return {
        "step": pl.UInt32,
        "time": pl.Float64,
        "request": pl.UInt32,
        "position": pl.UInt32,
        "layer": pl.UInt16,
        "experts": pl.Array(pl.UInt16, top_k),
        "weights": pl.Array(pl.Float32, top_k),
    }


class TraceWriter:
    """Writes a trace while it arrives, in memory that does not grow with it. A context manager: the file is
    there when it has ended without an error, and not before; nothing stays behind if there was one.

    Raises InvalidRequest if the path exists or nothing was written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        if path.exists():
            raise InvalidRequest(f"{path} exists; choose another name or remove it")
        self.path, self.header = path, header
        self._parts = path.with_name(path.name + ".parts")
        self._frames: list[pl.DataFrame] = []
        self._rows = self._written = 0

    def __enter__(self) -> TraceWriter:
        self._parts.mkdir(parents=True, exist_ok=False)
        return self

    def write(self, trace: Trace) -> None:
        self._frames.append(frame(trace))
        self._rows += len(self._frames[-1])
        if self._rows >= PART_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._join()
        finally:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _flush(self) -> None:
        if self._frames:
            part = self._parts / f"{self._written:08}.parquet"
            pl.concat(self._frames).write_parquet(part)
            self._written += 1
            self._frames, self._rows = [], 0

    def _join(self) -> None:
        """One file out of the parts: Parquet cannot be appended to. It gets its name when it is whole."""
        if not self._written:
            raise InvalidRequest("the trace is empty: no token was recorded")
        parts = [self._parts / f"{part:08}.parquet" for part in range(self._written)]
        whole = self._parts / "whole.parquet"
        text = json.dumps({"version": VERSION, **asdict(self.header)})
        pl.scan_parquet(parts).sink_parquet(
            whole, compression="zstd", maintain_order=True, metadata={METADATA_KEY: text}
        )
        whole.rename(self.path)


def read_header(path: Path) -> Header:
    """Raises InvalidRequest for a file that is not there or is not a trace."""
    try:
        text = pl.read_parquet_metadata(path)[METADATA_KEY]
        values = json.loads(text)
        if values.pop("version") != VERSION:
            raise InvalidRequest(f"{path} is a trace of another version; this reads version {VERSION}")
        return Header(**{**values, "layers": tuple(values["layers"])})
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist") from None
    except (OSError, pl.exceptions.PolarsError, KeyError, TypeError, ValueError):
        raise InvalidRequest(
            f"{path} is not a trace; make one with `moemesh trace record`, `generate` or `import`"
        ) from None


def read(path: Path) -> Trace:
    """The whole trace in memory. Raises InvalidRequest for what is not a trace, is empty, or is not
    complete.
    """
    header = read_header(path)
    rows = pl.read_parquet(path)
    if rows.is_empty():
        raise InvalidRequest(f"{path} is an empty trace; record or generate some tokens")
    layers = [
        rows.filter(pl.col("layer") == layer).sort("step", maintain_order=True) for layer in header.layers
    ]
    first = layers[0]
    keys = ["step", "request", "position"]
    if sum(map(len, layers)) != len(rows) or any(not each[keys].equals(first[keys]) for each in layers):
        raise InvalidRequest(f"{path} is not complete: not every token has all of its layers")
    return Trace(
        header,
        first["step"].to_numpy().astype(np.int64),
        first["time"].to_numpy().astype(np.float64),
        first["request"].to_numpy().astype(np.int64),
        first["position"].to_numpy().astype(np.int64),
        np.stack([each["experts"].to_numpy() for each in layers], axis=1),
        np.stack([each["weights"].to_numpy() for each in layers], axis=1),
    )


def from_records(
    header: Header,
    records: Sequence[GateRecord],
    number: int = 0,
    numbers: dict[RequestId, int] | None = None,
) -> Iterator[Trace]:
    """What a router recorded, as traces to write. number: of the first request among `records`; more requests
    count on in their order of appearance. numbers: of requests seen before, extended."""
    numbers = {} if numbers is None else numbers
    for record in records:
        tokens = len(record.positions)
        request = [
            np.full(rows, numbers.setdefault(name, number + len(numbers))) for name, rows in record.requests
        ]
        yield Trace(
            header,
            np.full(tokens, record.step),
            np.full(tokens, record.time),
            np.concatenate(request),
            record.positions,
            record.ids.transpose(1, 0, 2),
            record.weights.transpose(1, 0, 2),
        )
