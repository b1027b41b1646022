"""ModelSpec: everything the engine must know of a model, whatever family it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from kernels import layout

QkNorm = Literal["none", "head", "full"]


@dataclass(frozen=True)
class ModelSpec:
    """Shape and arithmetic of one model. Frozen, JSON-able by `to_dict`, compared by value.

    family: the family file that read it, e.g. "qwen3_moe".
    qk_norm: RMSNorm of q and k: "head" over each head, "full" over the whole projection.
    clip_qkv: clamp q, k, v to ±clip after the norm and before RoPE; 0 is off.
    inv_freq: head_dim/2 rotary frequencies, float32 values, computed once when the model is packed.
    expert_width, experts, top_k: routed experts of a sparse layer.
    norm_topk: renormalise the chosen experts' softmax weights to sum 1.
    shared_width: width of the shared expert, 0 for none (Qwen2-MoE scales it by a sigmoid gate).
    dense_widths: one entry a layer: 0 for a sparse layer, else the width of its dense MLP.
    windows: one entry a layer: 0 for full attention, else w: the token at position p attends to positions
        p - w < j <= p, itself included.
    eos_ids: ids that end a sequence; bos_id: prepended by the tokenizer if its own rules say so, None if
        unknown.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rms_eps: float
    inv_freq: tuple[float, ...]
    experts: int
    top_k: int
    expert_width: int
    norm_topk: bool
    dense_widths: tuple[int, ...]
    windows: tuple[int, ...]
    tied_embeddings: bool
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    clip_qkv: float = 0.0
    shared_width: int = 0
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        return tuple(i for i, width in enumerate(self.dense_widths) if width == 0)

    @property
    def padded_hidden(self) -> int:
        return layout.pad(self.hidden, layout.GROUP)

    @property
    def padded_head(self) -> int:
        return layout.pad(self.head_dim, layout.ROWS)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelSpec:
        """Raises TypeError on unknown or missing keys; lists become tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ModelSpec(**fields)
