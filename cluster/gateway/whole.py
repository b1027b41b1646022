"""Requests that are answered at once: a score of a text, an embedding."""

from __future__ import annotations

import math

import numpy as np

from cluster.gateway.admit import draw_id
from cluster.gateway.mailbox import End
from cluster.gateway.pool import RouterPool
from cluster.types import Alternatives, EngineRequest, RequestId, RequestKind, SamplingParams

Scores = tuple[np.ndarray, tuple[Alternatives, ...]]


async def score(
    pool: RouterPool, prompt: tuple[int, ...], top_logprobs: int = 0, priority: int = 0
) -> Scores:
    """([len(prompt) - 1] float32 natural-log probabilities of the tokens after the first, their alternatives
    if top_logprobs > 0). Raises Overloaded, Unavailable and what ended the request."""
    if len(prompt) < 2:
        return np.zeros(0, np.float32), ()
    sampling = SamplingParams(max_tokens=0, top_logprobs=top_logprobs)
    end = await _ask(pool, prompt, sampling, "score", priority)
    return _values(end), end.alternatives


async def embed(
    pool: RouterPool,
    prompt: tuple[int, ...],
    normalise: bool = False,
    priority: int = 0,
    charged: bool = False,
) -> np.ndarray:
    """[hidden] float32: the mean over the prompt's tokens of the final norm's rows; with `normalise` divided
    by its Euclidean length. charged: as in Ticket. Raises as `score`."""
    sampling = SamplingParams(max_tokens=0)
    values = _values(await _ask(pool, prompt, sampling, "embed", priority, charged))
    return normalised(values) if normalise else values


def normalised(values: np.ndarray) -> np.ndarray:
    """Divided by the Euclidean length; a zero vector stays one. The sum of squares is exact before it is
    rounded once, so that its bits depend on neither order nor machine."""
    length = math.sqrt(math.fsum(x * x for x in values.tolist()))
    return values if length == 0.0 else (values / np.float64(length)).astype(np.float32)


async def _ask(
    pool: RouterPool,
    prompt: tuple[int, ...],
    sampling: SamplingParams,
    kind: RequestKind,
    priority: int,
    charged: bool = False,
) -> End:
    request = EngineRequest(RequestId(draw_id()), prompt, sampling, kind, priority)
    ticket = pool.submit(request, charged=charged)
    try:
        end = (await ticket.mailboxes[0].take()).end
    finally:
        pool.release(ticket)
    if end is None:
        raise RuntimeError(f"a router answered a {kind} request with tokens")
    return end


def _values(end: End) -> np.ndarray:
    if end.values is None:  # aborted: nobody but this process knows its id
        raise RuntimeError("a request ended without the values that it asked for")
    return end.values
