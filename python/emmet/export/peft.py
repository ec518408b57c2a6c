"""A delta as a LoRA adapter of PEFT, which vLLM and other servers load as well."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..delta import Delta
from ..errors import EmmetError
from ..output import MANIFEST, output_folder
from ..storage import write_json, write_tensors
from .lora import factorise, require_updates

_FORMAT = "emmet.peft.1"

# vLLM serves adapters of these ranks, and takes one rank for all of an adapter's layers: it ignores `rank_pattern`.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def save_peft(delta: Delta, directory: str | PathLike[str]) -> None:
    """Write a folder that `PeftModel.from_pretrained(model, directory)` loads, to give the edited model.

    Its factors are float32. Raises EmmetError if an update's rank is above 512, or if the folder holds files that
    emmet did not write.
    """
    require_updates(delta)
    layers = {layer.module: factorise(layer.update) for layer in delta.layers.values()}
    rank = padded_rank(max(factors.rank for factors in layers.values()))
    tensors = {}
    for module, factors in layers.items():
        a, b = factors.padded(rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    with output_folder(Path(directory)) as folder:
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "adapter_config.json", _config(delta, rank))
        write_json(folder / MANIFEST, delta.manifest() | {"format": _FORMAT})


def padded_rank(rank: int) -> int:
    """The least rank that servers accept, of those that are no smaller. Raises EmmetError if there is none."""
    for accepted in _RANKS:
        if rank <= accepted:
            return accepted
    message = f"expected an update of rank {_RANKS[-1]} or less, the most that vLLM takes in an adapter, got {rank}"
    message += f"; compress it, with `emmet export DELTA --rank {_RANKS[-1]} --stats DIR` or `Update.compress`"
    message += ", edit fewer facts at once, or write the whole model instead, with --format model"
    raise EmmetError(message)


def _config(delta: Delta, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": delta.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # PEFT scales by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [layer.module for layer in delta.layers.values()],
        "fan_in_fan_out": any(layer.transposed for layer in delta.layers.values()),
    }
