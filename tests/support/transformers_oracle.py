"""The oracle: transformers in float32. Importing this needs torch; only the parity extra has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

torch.set_num_threads(2)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class OracleOutput:
    """logits: [tokens, vocab] float32. gate_ids: per sparse layer [tokens, top_k], best expert first."""

    logits: npt.NDArray[np.float32]
    gate_ids: dict[int, npt.NDArray[np.int64]]


class Oracle:
    """One checkpoint in transformers. mutation: a name of support.mutations, made in transformers itself."""

    def __init__(self, path: Path, mutation: str = "") -> None:
        config = transformers.AutoConfig.from_pretrained(path)
        _mutate_config(config, mutation)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=False
        ).eval()
        if mutation == "missing_qk_norm":
            for layer in self._model.model.layers:
                layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()

    def forward(self, ids: Sequence[int]) -> OracleOutput:
        chosen: dict[int, Any] = {}
        hooks = [
            layer.mlp.gate.register_forward_hook(
                lambda _module, _inputs, output, index=index: chosen.__setitem__(index, output[2].numpy())
            )
            for index, layer in enumerate(self._model.model.layers)
            if hasattr(layer.mlp, "gate")
        ]
        with torch.no_grad():
            logits = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        for hook in hooks:
            hook.remove()
        return OracleOutput(logits, chosen)

    def save(self, folder: Path) -> None:
        """As transformers itself writes the checkpoint: its own spelling of config and tensors."""
        self._model.save_pretrained(folder)

    def inv_freq(self) -> npt.NDArray[np.float32]:
        return self._model.model.rotary_emb.inv_freq.numpy()

    def greedy(self, ids: Sequence[int], steps: int) -> list[int]:
        """By full recomputation, never stopping at an end-of-sequence id."""
        sequence = list(ids)
        with torch.no_grad():
            for _ in range(steps):
                logits = self._model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
                sequence.append(int(logits.argmax()))
        return sequence[len(ids) :]


def _mutate_config(config: Any, mutation: str) -> None:
    if mutation == "doubled_rope_theta":
        config.rope_parameters = {
            **config.rope_parameters,
            "rope_theta": config.rope_parameters["rope_theta"] * 2,
        }
    elif mutation == "wrong_eps":
        config.rms_norm_eps = 1e-5 if config.rms_norm_eps < 5e-6 else 1e-6
    elif mutation == "flipped_norm_topk":
        config.norm_topk_prob = not config.norm_topk_prob
