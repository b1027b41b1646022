"""The trunk: everything of a model but its routed experts, a layer at a time, on kernels.

A call computes all rows of a batch; the number of kernel calls does not depend on how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cluster.compute.ffn import Activations, Groups, run_ffn
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.compute.weights import FfnWeights, Matrix, TrunkWeights, kv_dtype
from cluster.model.spec import ModelSpec
from kernels import attention, gate, layout, maths, matmul, norm, permute, quantise, rope

QK_MODES = {"none": rope.QK_NONE, "head": rope.QK_HEAD, "full": rope.QK_FULL}

_NONE = np.zeros(0, np.float32)
_NO_SUMS = np.zeros((0, 1), np.int32)


@dataclass(frozen=True)
class KvView:
    """The KV pages of all layers and who owns them (cluster/router/kv.py gives the shapes).

    page_table: [slots, pages] int32.
    """

    keys: np.ndarray
    values: np.ndarray
    page_tokens: int
    page_table: np.ndarray


@dataclass(frozen=True)
class Gated:
    """What a layer sends to the experts, and what the shared expert needs.

    ids: [T, top_k] int32, weights: [T, top_k] float32, in descending weight; acts: the normed rows as
    they are sent; hidden: [T, Hp] float32, the same before quantisation; finite: [T] uint8.
    """

    ids: np.ndarray
    weights: np.ndarray
    acts: Activations
    hidden: np.ndarray
    finite: np.ndarray


class Workspace(Scratch):
    """Arrays of one micro-batch in flight."""


class Trunk:
    """float_rows: the routed experts are float weights, so rows go to them as float32."""

    def __init__(
        self, spec: ModelSpec, weights: TrunkWeights, workers: Workers, float_rows: bool = False
    ) -> None:
        self.spec, self.weights, self.workers, self.float_rows = spec, weights, workers, float_rows
        self.kv_dtype = kv_dtype(weights.floating)
        self._scale = np.float32(1.0 / math.sqrt(spec.head_dim))
        self._inv_freq = np.array(spec.inv_freq, np.float32)
        self.prepare_positions(0)

    def prepare_positions(self, context: int) -> None:
        """Rotary tables and scratch for positions below `context`; call before the first batch."""
        self._cos, self._sin = maths.rotary_tables(self._inv_freq, context)
        shape = (self.spec.heads // self.spec.kv_heads, layout.pad(context, attention.BLOCK))
        self._scores = [np.zeros(shape, np.float32) for _ in range(self.workers.threads)]

    def workspace(self) -> Workspace:
        return Workspace()

    def embed(self, work: Workspace, tokens: np.ndarray) -> np.ndarray:
        """tokens: [T] int32 -> the residual stream x, [T, Hp] float32, valid for this micro-batch."""
        matrix = self.weights.embed
        x = work.take("x", len(tokens), matrix.width, np.float32)
        matmul.embed_rows(matrix.data, matrix.base, matrix.width, tokens, x)
        return x

    def attention(
        self,
        work: Workspace,
        layer: int,
        x: np.ndarray,
        kv: KvView,
        positions: np.ndarray,
        slots: np.ndarray,
        sequence: np.ndarray,
    ) -> np.ndarray:
        """x += attention(norm(x)); stores K and V of the rows first. Returns finite flags [T]."""
        weights = self.weights.layers[layer]
        hidden, finite = self._norm(work, x, weights.attn_norm)
        qkv = self._linear(work, weights.qkv, hidden, "qkv")
        q = work.take("q", len(x), self.spec.heads * self.spec.padded_head, np.float32)
        q = q.reshape(len(x), self.spec.heads, self.spec.padded_head)
        stored = work.vector("stored", len(x), np.uint8)
        self._store_kv(layer, qkv, q, kv, positions, slots, stored)
        mixed = work.take("mixed", len(x), weights.o.width, np.float32)
        self._attend(layer, q, kv, positions, sequence, mixed)
        self._add(x, self._linear(work, weights.o, mixed, "o"))
        finite &= stored
        return finite

    def gate(self, work: Workspace, layer: int, x: np.ndarray) -> Gated:
        """Norm, gate, top-k, and the rows quantised once for whoever computes the experts."""
        weights = self.weights.layers[layer]
        assert weights.gate is not None
        hidden, finite = self._norm(work, x, weights.mlp_norm)
        ids = work.take("ids", len(x), self.spec.top_k, np.int32)
        probabilities = work.take("weights", len(x), self.spec.top_k, np.float32)
        logits = work.take("gate", len(x), weights.gate.shape[0] * layout.ROWS, np.float32)
        self.workers.run(gate.gate_logits, len(x), hidden, weights.gate, logits)
        self.workers.run(
            gate.gate_topk,
            len(x),
            logits,
            self.spec.experts,
            self.spec.top_k,
            int(self.spec.norm_topk),
            ids,
            probabilities,
        )
        return Gated(ids, probabilities, self._activations(work, hidden, self.float_rows), hidden, finite)

    def shared(self, work: Workspace, layer: int, gated: Gated) -> np.ndarray | None:
        """The shared expert's rows, [T, Hp] float32, scaled by its own gate; None without one."""
        weights = self.weights.layers[layer]
        if weights.shared is None:
            return None
        acts = gated.acts
        if weights.shared.floating != acts.floating:
            acts = self._activations(work, gated.hidden, weights.shared.floating)
        out = self._ffn(work, weights.shared, acts, "shared")
        if weights.shared_gate is not None:
            self.workers.run(gate.sigmoid_gate, len(out), gated.hidden, weights.shared_gate, out)
        return out

    def dense(self, work: Workspace, layer: int, x: np.ndarray) -> np.ndarray:
        """x += the dense MLP of a layer without experts. Returns finite flags [T]."""
        weights = self.weights.layers[layer]
        assert weights.dense is not None
        hidden, finite = self._norm(work, x, weights.mlp_norm)
        acts = self._activations(work, hidden, weights.dense.floating)
        self._add(x, self._ffn(work, weights.dense, acts, "dense"))
        return finite

    def combine(
        self,
        x: np.ndarray,
        rows: np.ndarray,
        index: np.ndarray,
        weights: np.ndarray,
        shared: np.ndarray | None,
    ) -> None:
        """x += sum over ranks r of weights[:, r] * rows[index[:, r]], in rank order, then the shared row."""
        extra = x[:0] if shared is None else shared
        self.workers.run(permute.combine, len(x), x, rows, index, weights, extra)

    def head(self, work: Workspace, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([T, vocab padded to 16] float32 logits, [T] uint8 finite flags) of [T, Hp] float32 rows."""
        normed, finite = self._norm(work, hidden, self.weights.final_norm)
        return self._linear(work, self.weights.head, normed, "logits"), finite

    def _norm(self, work: Workspace, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = work.take("hidden", len(x), x.shape[1], np.float32)
        finite = work.vector("finite", len(x), np.uint8)
        self.workers.run(
            norm.rms_norm, len(x), x, weight, np.float32(self.spec.rms_eps), self.spec.hidden, out, finite
        )
        return out, finite

    def _store_kv(
        self,
        layer: int,
        qkv: np.ndarray,
        q: np.ndarray,
        kv: KvView,
        positions: np.ndarray,
        slots: np.ndarray,
        finite: np.ndarray,
    ) -> None:
        weights, spec = self.weights.layers[layer], self.spec
        self.workers.run(
            rope.prepare_qkv,
            len(qkv),
            qkv,
            _NONE if weights.qkv_bias is None else weights.qkv_bias,
            _NONE if weights.q_norm is None else weights.q_norm,
            _NONE if weights.k_norm is None else weights.k_norm,
            QK_MODES[spec.qk_norm],
            np.float32(spec.clip_qkv),
            np.float32(spec.rms_eps),
            spec.head_dim,
            self._cos,
            self._sin,
            positions,
            slots,
            kv.keys[layer],
            kv.values[layer],
            q,
            finite,
        )

    def _attend(
        self,
        layer: int,
        q: np.ndarray,
        kv: KvView,
        positions: np.ndarray,
        sequence: np.ndarray,
        out: np.ndarray,
    ) -> None:
        keys, values = kv.keys[layer], kv.values[layer]
        window, table = self.spec.windows[layer], kv.page_table
        self.workers.run_each(
            attention.attend,
            len(q) * self.spec.kv_heads,
            lambda thread: (
                *(q, keys, values, table, sequence, positions, window, self._scale, out),
                self._scores[thread],
            ),
        )

    def _linear(self, work: Workspace, matrix: Matrix, x: np.ndarray, name: str) -> np.ndarray:
        """[T, matrix.rows] float32, under `name` in the workspace."""
        out = work.take(name, len(x), matrix.rows, np.float32)
        if matrix.floating:
            self.workers.run(matmul.matmul_float, matrix.blocks, matrix.data, matrix.base, x, out)
            return out
        acts = self._quantise(work, x)
        self.workers.run(
            matmul.matmul_int,
            matrix.blocks,
            matrix.data,
            matrix.base,
            acts.rows,
            acts.rows,
            acts.sums,
            acts.sums,
            acts.scale,
            1,
            out,
        )
        return out

    def _quantise(self, work: Workspace, x: np.ndarray) -> Activations:
        rows, width = x.shape
        q = work.take("quantised", rows, width, np.int8)
        scale = work.vector("scale", rows, np.float32)
        sums = work.take("sums", rows, width // layout.GROUP, np.int32)
        self.workers.run(quantise.quantise_rows, rows, x, q, scale, sums)
        return Activations(q, scale, sums)

    def _activations(self, work: Workspace, hidden: np.ndarray, floating: bool) -> Activations:
        """One int8 plane, or the rows themselves for float weights."""
        if floating:
            return Activations(hidden, _NONE, _NO_SUMS)
        return self._quantise(work, hidden)

    def _ffn(self, work: Workspace, weights: FfnWeights, acts: Activations, name: str) -> np.ndarray:
        """A network that every row goes through: one group with one expert. [T, Hp] float32."""
        rows, width = acts.rows.shape
        out = work.take(name, rows, width, np.float32)
        every = np.arange(rows, dtype=np.int64)
        groups = Groups(np.array([weights.base]), np.array([0, rows]), every, every)
        run_ffn(self.workers, work, weights.data, weights.down_offset, weights.width, groups, acts, out)
        return out

    def _add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.workers.run(matmul.add_rows, len(x), x, y)
