"""The trunk: everything of a model but its routed experts, a layer at a time, on kernels.

A call computes all rows of a batch; the number of kernel calls does not depend on how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cluster.compute.ffn import Activations, FfnScratch, Groups, run_ffn
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Kernel, Workers
from cluster.compute.weights import FfnWeights, Matrix, TrunkWeights
from cluster.model.spec import ModelSpec
from kernels import attention, fused, gate, layout, maths, matmul, norm, permute, quantise, rope

QK_MODES = {"none": rope.QK_NONE, "head": rope.QK_HEAD, "full": rope.QK_FULL}

SPLIT_ROWS = 4
"""Row kernels are not split below this: they take less time than waking another thread."""

SCORE_BYTES = 1 << 20
"""Scratch of one thread for the scores of rows that attention computes together: it stays in the L2 cache."""

_NONE = np.zeros(0, np.float32)
_NO_SUMS = np.zeros((0, 1), np.int32)


def has_zero(flags: np.ndarray) -> bool:
    """Whether a row is not finite. As bytes: numpy's `all` takes ten times as long on a few flags."""
    return 0 in flags.tobytes()


@dataclass(frozen=True)
class KvView:
    """The KV pages of all layers and who owns them (cluster/router/kv.py gives the shapes).

    page_table: [slots, pages] int32. key_scales, value_scales: of int8 pages, else None.
    """

    keys: np.ndarray
    values: np.ndarray
    page_tokens: int
    page_table: np.ndarray
    key_scales: np.ndarray | None = None
    value_scales: np.ndarray | None = None

    @cached_property
    def layers(self) -> list[tuple[np.ndarray | None, ...]]:
        """(keys, values, scales of keys, scales of values) of every layer."""
        if self.key_scales is None or self.value_scales is None:
            return [(keys, values, None, None) for keys, values in zip(self.keys, self.values, strict=True)]
        return list(zip(self.keys, self.values, self.key_scales, self.value_scales, strict=True))


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


@dataclass(frozen=True)
class _Normed:
    """Where a norm goes. hidden: [T, Hp] float32; finite: [T] uint8; acts: `hidden` quantised."""

    hidden: np.ndarray
    finite: np.ndarray
    acts: Activations


@dataclass(frozen=True)
class _Rows:
    """The arrays that every layer uses, for a batch of as many rows as x has.

    A step takes them once: after the weights have gone through the caches, looking one up by its name takes
    longer than many a kernel. qkv: [T, qkv rows]; q: [T, heads, Dp]; mixed: [T, inputs of o], and
    mixed_acts the same quantised; o: [T, Hp]; stored: [T] uint8; logits: [T, E16]; gated:
    what a layer's gate leaves.
    """

    x: np.ndarray
    normed: _Normed
    qkv: np.ndarray
    q: np.ndarray
    stored: np.ndarray
    mixed: np.ndarray
    mixed_acts: Activations
    o: np.ndarray
    logits: np.ndarray
    gated: Gated


class Workspace(Scratch):
    """Arrays of one micro-batch in flight."""

    rows: _Rows | None = None


class Trunk:
    """float_rows: the routed experts are float weights, so rows go to them as float32."""

    def __init__(
        self, spec: ModelSpec, weights: TrunkWeights, workers: Workers, float_rows: bool = False
    ) -> None:
        self.spec, self.weights, self.workers, self.float_rows = spec, weights, workers, float_rows
        self._scale = np.float32(1.0 / math.sqrt(spec.head_dim))
        self._inv_freq = np.array(spec.inv_freq, np.float32)
        self._eps = np.float32(spec.rms_eps)
        self._prepare = [self._prepare_options(layer) for layer in range(spec.layers)]
        self.prepare_positions(0)

    def _prepare_options(self, layer: int) -> tuple[Any, ...]:
        """What `prepare_qkv` takes of a layer's weights and of the spec."""
        weights, spec = self.weights.layers[layer], self.spec
        optional = (weights.qkv_bias, weights.q_norm, weights.k_norm)
        arrays = (_NONE if array is None else array for array in optional)
        return (*arrays, QK_MODES[spec.qk_norm], np.float32(spec.clip_qkv), self._eps, spec.head_dim)

    def prepare_positions(self, context: int) -> None:
        """Rotary tables and scratch for positions below `context`; call before the first batch."""
        self._cos, self._sin = maths.rotary_tables(self._inv_freq, context)
        # A line more than the blocks need: rows that begin a multiple of 4 KB apart share cache sets.
        line = layout.pad(context, attention.BLOCK) + layout.ROWS
        group = self.spec.heads // self.spec.kv_heads
        rows = max(min(SCORE_BYTES // (4 * line), 32), 8, group)
        self._scores = [np.zeros((rows, line), np.float32) for _ in range(self.workers.threads)]

    def workspace(self) -> Workspace:
        return Workspace()

    def embed(self, work: Workspace, tokens: np.ndarray) -> np.ndarray:
        """tokens: [T] int32 -> the residual stream x, [T, Hp] float32, valid for this micro-batch."""
        if work.rows is None or len(work.rows.x) != len(tokens):
            work.rows = self._rows(work, len(tokens))
        matrix, x = self.weights.embed, work.rows.x
        matmul.embed_rows(matrix.data, matrix.base, matrix.width, tokens, x)
        return x

    def _rows(self, work: Workspace, count: int) -> _Rows:
        spec, hidden, layer = self.spec, self.weights.embed.width, self.weights.layers[0]
        normed = self._normed(work, "normed", count)
        acts = Activations(normed.hidden, _NONE, _NO_SUMS) if self.float_rows else normed.acts
        ids = work.take("ids", count, spec.top_k, np.int32)
        gate_weights = work.take("weights", count, spec.top_k, np.float32)
        q = work.take("q", count, spec.heads * spec.padded_head, np.float32)
        return _Rows(
            x=work.take("x", count, hidden, np.float32),
            normed=normed,
            qkv=work.take("qkv", count, layer.qkv.rows, np.float32),
            q=q.reshape(count, spec.heads, spec.padded_head),
            stored=work.vector("stored", count, np.uint8),
            mixed=work.take("mixed", count, layer.o.width, np.float32),
            mixed_acts=self._activation_arrays(work, "mixed", count, layer.o.width),
            o=work.take("o", count, hidden, np.float32),
            logits=work.take("gate", count, layout.pad(spec.experts, layout.ROWS), np.float32),
            gated=Gated(ids, gate_weights, acts, normed.hidden, normed.finite),
        )

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
        weights, rows, pages = self.weights.layers[layer], work.rows, kv.layers[layer]
        assert rows is not None
        acts = self._norm(x, weights.attn_norm, rows.normed, weights.qkv.floating)
        self._product(weights.qkv, acts, rows.qkv)
        self._by_row(
            rope.prepare_qkv,
            *(len(x), rows.qkv, *self._prepare[layer], self._cos, self._sin, positions, slots),
            *(*pages, rows.q, rows.stored),
        )
        places = (kv.page_table, sequence, positions, self.spec.windows[layer], self._scale, rows.mixed)
        self.workers.run_each(
            attention.attend,
            len(x) * self.spec.kv_heads,
            lambda thread: (rows.q, *pages, *places, self._scores[thread]),
        )
        acts = self._quantised(rows.mixed, rows.mixed_acts, weights.o.floating)
        self._product(weights.o, acts, rows.o)
        self._by_row(matmul.add_rows, len(x), x, rows.o)
        finite = rows.normed.finite
        if has_zero(rows.stored):
            finite &= rows.stored
        return finite

    def gate(self, work: Workspace, layer: int, x: np.ndarray) -> Gated:
        """Norm, gate, top-k, and the rows quantised once for whoever computes the experts."""
        weights, spec, rows = self.weights.layers[layer], self.spec, work.rows
        assert weights.gate is not None
        assert rows is not None
        choice = (spec.experts, spec.top_k, int(spec.norm_topk))
        normed, gated = rows.normed, rows.gated
        if self.float_rows:
            self._norm(x, weights.mlp_norm, normed, floating=True)
            self._by_row(gate.gate_logits, len(x), normed.hidden, weights.gate, rows.logits)
            self._by_row(gate.gate_topk, len(x), rows.logits, *choice, gated.ids, gated.weights)
        else:
            self._by_row(
                fused.gate_rows,
                *(len(x), x, weights.mlp_norm, self._eps, spec.hidden, normed.hidden, normed.finite),
                *(gated.acts.rows, gated.acts.scale, gated.acts.sums, weights.gate, *choice, rows.logits),
                *(gated.ids, gated.weights),
            )
        return gated

    def shared(self, work: Workspace, layer: int, gated: Gated) -> np.ndarray | None:
        """The shared expert's rows, [T, Hp] float32, scaled by its own gate; None without one."""
        weights = self.weights.layers[layer]
        if weights.shared is None:
            return None
        acts = gated.acts
        if weights.shared.floating != acts.floating:
            arrays = self._activation_arrays(work, "shared", *gated.hidden.shape)
            acts = self._quantised(gated.hidden, arrays, weights.shared.floating)
        out = self._ffn(work, weights.shared, acts, "shared")
        if weights.shared_gate is not None:
            self._by_row(gate.sigmoid_gate, len(out), gated.hidden, weights.shared_gate, out)
        return out

    def dense(self, work: Workspace, layer: int, x: np.ndarray) -> np.ndarray:
        """x += the dense MLP of a layer without experts. Returns finite flags [T]."""
        weights = self.weights.layers[layer]
        assert weights.dense is not None
        assert work.rows is not None
        acts = self._norm(x, weights.mlp_norm, work.rows.normed, weights.dense.floating)
        self._by_row(matmul.add_rows, len(x), x, self._ffn(work, weights.dense, acts, "dense"))
        return work.rows.normed.finite

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
        self._by_row(permute.combine, len(x), x, rows, index, weights, extra)

    def head(self, work: Workspace, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([T, vocab padded to 16] float32 logits, [T] uint8 finite flags) of [T, Hp] float32 rows."""
        matrix, normed = self.weights.head, self._normed(work, "head", len(hidden))
        logits = work.take("logits", len(hidden), matrix.rows, np.float32)
        self._product(matrix, self._norm(hidden, self.weights.final_norm, normed, matrix.floating), logits)
        return logits, normed.finite

    def final(self, work: Workspace, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([T, Hp] float32 rows behind the final norm, [T] uint8 finite flags) of [T, Hp] float32 rows."""
        normed = self._normed(work, "head", len(hidden))
        self._norm(hidden, self.weights.final_norm, normed, floating=True)
        return normed.hidden, normed.finite

    def _by_row(self, kernel: Kernel, rows: int, *args: Any) -> None:
        """Run a kernel whose work items are rows."""
        if 1 < rows < SPLIT_ROWS and self.workers.threads > 1:
            kernel(*args, 0, rows)
        else:
            self.workers.run(kernel, rows, *args)

    def _norm(self, x: np.ndarray, weight: np.ndarray, into: _Normed, floating: bool) -> Activations:
        """norm(x) as a matrix takes it that is `floating` or not; fills hidden and finite of `into` too."""
        options = (x, weight, self._eps, self.spec.hidden, into.hidden, into.finite)
        if floating:
            self._by_row(norm.rms_norm, len(x), *options)
            return Activations(into.hidden, _NONE, _NO_SUMS)
        acts = into.acts
        self._by_row(fused.norm_rows, len(x), *options, acts.rows, acts.scale, acts.sums)
        return acts

    def _quantised(self, x: np.ndarray, into: Activations, floating: bool) -> Activations:
        """One int8 plane, or the rows themselves for a matrix that is `floating`."""
        if floating:
            return Activations(x, _NONE, _NO_SUMS)
        self._by_row(quantise.quantise_rows, len(x), x, into.rows, into.scale, into.sums)
        return into

    def _product(self, matrix: Matrix, acts: Activations, out: np.ndarray) -> None:
        """out [T, matrix.rows] float32 = acts times the matrix."""
        if matrix.floating:
            self.workers.run(matmul.matmul_float, matrix.blocks, matrix.data, matrix.base, acts.rows, out)
        else:
            planes = (acts.rows, acts.rows, acts.sums, acts.sums, acts.scale, 1)
            self.workers.run(matmul.matmul_int, matrix.blocks, matrix.data, matrix.base, *planes, out)

    def _normed(self, work: Workspace, name: str, rows: int) -> _Normed:
        width = self.weights.embed.width
        return _Normed(
            work.take(name, rows, width, np.float32),
            work.vector(f"{name}.finite", rows, np.uint8),
            self._activation_arrays(work, name, rows, width),
        )

    def _activation_arrays(self, work: Workspace, name: str, rows: int, width: int) -> Activations:
        return Activations(
            work.take(f"{name}.quantised", rows, width, np.int8),
            work.vector(f"{name}.scale", rows, np.float32),
            work.take(f"{name}.sums", rows, width // layout.GROUP, np.int32),
        )

    def _ffn(self, work: Workspace, weights: FfnWeights, acts: Activations, name: str) -> np.ndarray:
        """A network that every row goes through: one group with one expert. [T, Hp] float32."""
        rows, width = acts.rows.shape
        out = work.take(name, rows, width, np.float32)
        every = np.arange(rows, dtype=np.int64)
        groups = Groups(np.array([weights.base]), np.array([0, rows]), every, every)
        inner = FfnScratch(work, weights.width)
        run_ffn(self.workers, inner, weights.data, weights.down_offset, groups, acts, out)
        return out
