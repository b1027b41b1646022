"""Public expert-selection traces: an array of expert ids by token, layer and rank, in .npy or .npz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cluster.errors import InvalidRequest
from cluster.experiments.routing import MOST_EXPERTS, Header, Trace

IDS = ("ids", "expert_ids", "experts", "selected_experts", "topk_ids", "topk_idx")
WEIGHTS = ("weights", "expert_weights", "gate_weights", "topk_weights", "routing_weights")
"""Names under which published archives keep the arrays."""

PART_TOKENS = 4096


def import_arrays(
    path: Path, tokens_per_step: int, experts: int = 0, layers_first: bool = False
) -> tuple[Header, Iterator[Trace], int]:
    """The header, the trace in parts, and its number of tokens.

    path: .npy with ids [tokens, layers, top_k], or .npz with them (and weights of the same shape) under one
        of
        the usual names; a single array may have any name. layers_first: [layers, tokens, top_k] instead.
    tokens_per_step: consecutive tokens that become one step; such files do not say.
    experts: number of experts in a layer; 0 takes the largest id and says so by one more.

    Without weights every expert gets 1 / top_k; all tokens are one request. Raises InvalidRequest.
    """
    ids, weights = _load(path)
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise InvalidRequest(
            f"{path} holds {ids.dtype} of shape {list(ids.shape)}; "
            "expected whole numbers [tokens, layers, top-k]"
        )
    if layers_first:
        ids = ids.swapaxes(0, 1)
        weights = None if weights is None else weights.swapaxes(0, 1)
    if not ids.size:
        raise InvalidRequest(f"{path} is an empty trace, of shape {list(ids.shape)}")
    if weights is not None and weights.shape != ids.shape:
        raise InvalidRequest(f"{path} has weights of {list(weights.shape)} for ids of {list(ids.shape)}")
    least, largest = int(ids.min()), int(ids.max())
    if least < 0 or largest >= (experts or MOST_EXPERTS):
        raise InvalidRequest(
            f"{path} names experts {least} to {largest}; expected 0 to {(experts or MOST_EXPERTS) - 1}"
        )
    if tokens_per_step < 1:
        raise InvalidRequest(f"{tokens_per_step} tokens a step; there must be at least 1")
    header = Header(experts or largest + 1, ids.shape[2], tuple(range(ids.shape[1])), path.name)
    return header, _parts(header, ids, weights, tokens_per_step), len(ids)


def _parts(
    header: Header,
    ids: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating] | None,
    tokens_per_step: int,
) -> Iterator[Trace]:
    for begin in range(0, len(ids), PART_TOKENS):
        part = ids[begin : begin + PART_TOKENS]
        numbers = begin + np.arange(len(part))
        steps = numbers // tokens_per_step
        even = np.full(part.shape, 1 / header.top_k, np.float32)
        given = even if weights is None else weights[begin : begin + PART_TOKENS].astype(np.float32)
        yield Trace(
            header,
            steps,
            steps.astype(np.float64),
            np.zeros(len(part), np.int64),
            numbers,
            part.astype(np.uint16),
            given,
        )


def _load(path: Path) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.floating] | None]:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            found = next((name for name in IDS if name in names), names[0] if len(names) == 1 else None)
            if found is None:
                raise InvalidRequest(
                    f"{path} has arrays {', '.join(names)}; call the ids {' or '.join(IDS[:2])}"
                )
            gate = next((name for name in WEIGHTS if name in names), None)
            return archive[found], None if gate is None else archive[gate]
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile) as error:
        raise InvalidRequest(f"{path} is not a .npy or .npz of plain arrays: {error}") from None
