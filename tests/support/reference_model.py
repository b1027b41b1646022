"""The whole model, slow and obvious, in numpy: the oracle for the engine and the proof of the readers.

No cache, no batching, no blocks: every token is computed from all tokens before it. Checked against
transformers by tests/contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.model.checkpoint import Checkpoint
from cluster.model.spec import ModelSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReferenceOutput:
    """logits: [tokens, vocab]. gate_ids: per sparse layer [tokens, top_k], best expert first, and
    gate_margins: per sparse layer [tokens], the gap of the gate's logits between the last expert chosen and
    the first left out (infinite where all are chosen)."""

    logits: Array
    gate_ids: dict[int, Array]
    gate_margins: dict[int, Array]


class ReferenceModel:
    """A checkpoint's weights in memory. spec: in place of its own, for mutations; dtype: of the sums."""

    def __init__(
        self, checkpoint: Checkpoint, spec: ModelSpec | None = None, dtype: Any = np.float64
    ) -> None:
        self.spec = spec or checkpoint.spec
        self.dtype = dtype
        self._embed = checkpoint.embed().astype(dtype)
        self._head = checkpoint.head().astype(dtype)
        self._final_norm = checkpoint.final_norm()
        self._layers = [checkpoint.layer(layer) for layer in range(self.spec.layers)]
        self._experts = {
            (layer, index): tuple(part.astype(dtype) for part in checkpoint.expert(layer, index))
            for layer in self.spec.sparse_layers
            for index in range(self.spec.experts)
        }

    def forward(self, ids: Sequence[int]) -> ReferenceOutput:
        x = self._embed[np.asarray(ids)]
        gate_ids, gate_margins = {}, {}
        for index, layer in enumerate(self._layers):
            x = x + self._attention(index, self._norm(x, layer.attn_norm))
            normed = self._norm(x, layer.mlp_norm)
            if layer.dense is not None:
                x = x + swiglu(normed, *layer.dense)
                continue
            routed, gate_ids[index], gate_margins[index] = self._routed(index, normed)
            if layer.shared is not None:
                scale = 1 / (1 + np.exp(-(normed @ layer.shared_gate.astype(self.dtype))))
                routed = routed + scale[:, None] * swiglu(normed, *layer.shared)
            x = x + routed
        logits = self._norm(x, self._final_norm) @ self._head.T
        return ReferenceOutput(logits, gate_ids, gate_margins)

    def greedy(self, ids: Sequence[int], steps: int) -> list[int]:
        """The next `steps` ids, never stopping at an end-of-sequence id."""
        sequence = list(ids)
        for _ in range(steps):
            sequence.append(int(self.forward(sequence).logits[-1].argmax()))
        return sequence[len(ids) :]

    def _norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.spec.rms_eps) * weight.astype(self.dtype)

    def _attention(self, index: int, x: Array) -> Array:
        spec, layer, tokens = self.spec, self._layers[index], len(x)
        q, k, v = x @ layer.q.T, x @ layer.k.T, x @ layer.v.T
        if spec.qkv_bias:
            q, k, v = q + layer.q_bias, k + layer.k_bias, v + layer.v_bias
        if spec.qk_norm == "full":
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        if spec.clip_qkv:
            q, k, v = (np.clip(part, -spec.clip_qkv, spec.clip_qkv) for part in (q, k, v))
        q, k, v = (part.reshape(tokens, -1, spec.head_dim).swapaxes(0, 1) for part in (q, k, v))
        if spec.qk_norm == "head":
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        group = spec.heads // spec.kv_heads
        q, k, v = self._rotate(q), np.repeat(self._rotate(k), group, 0), np.repeat(v, group, 0)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(spec.head_dim)
        scores[:, ~visible(tokens, spec.windows[index])] = -np.inf
        mixed = softmax(scores).astype(self.dtype) @ v
        return mixed.swapaxes(0, 1).reshape(tokens, -1) @ layer.o.T

    def _rotate(self, x: Array) -> Array:
        """x: [heads, tokens, head_dim]; the two halves of a head rotate as pairs (i, i + head_dim/2)."""
        positions = np.arange(x.shape[1], dtype=np.float32)
        angles = positions[:, None] * np.asarray(self.spec.inv_freq, np.float32)  # rounded where torch rounds
        cos, sin = (trig(angles.astype(np.float64)).astype(self.dtype) for trig in (np.cos, np.sin))
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _routed(self, index: int, x: Array) -> tuple[Array, Array, Array]:
        spec = self.spec
        logits = x @ self._layers[index].gate.astype(self.dtype).T
        order = np.argsort(-logits, axis=-1, kind="stable")  # ties to the lower index
        chosen = order[:, : spec.top_k]
        weights = np.take_along_axis(softmax(logits), chosen, -1)
        if spec.norm_topk:
            weights = weights / weights.sum(-1, keepdims=True)
        out = np.zeros_like(x)
        for expert in np.unique(chosen):
            tokens, ranks = np.nonzero(chosen == expert)
            out[tokens] += weights[tokens, ranks, None] * swiglu(
                x[tokens], *self._experts[index, int(expert)]
            )
        ranked = np.take_along_axis(logits, order, -1)
        everyone = spec.top_k == spec.experts
        margins = np.full(len(x), np.inf) if everyone else ranked[:, spec.top_k - 1] - ranked[:, spec.top_k]
        return out, chosen, margins


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """x: [tokens, hidden] -> [tokens, hidden]"""
    hidden = x @ gate.T
    return (hidden / (1 + np.exp(-hidden)) * (x @ up.T)) @ down.T


def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def visible(tokens: int, window: int) -> npt.NDArray[np.bool_]:
    """[tokens, tokens]: may the row's position look at the column's?"""
    rows, columns = np.arange(tokens)[:, None], np.arange(tokens)
    causal = columns <= rows
    return causal & (columns > rows - window) if window else causal


def relative_error(logits: Array, reference: Array) -> float:
    """max |difference| / max |reference logit|: the measure of the parity tests."""
    return float(np.abs(logits - reference).max() / np.abs(reference).max())
