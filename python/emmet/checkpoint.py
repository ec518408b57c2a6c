"""An edited model as a folder that `transformers` loads like any other."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .delta import Delta
from .loading import reporting
from .output import MANIFEST, output_folder
from .progress import Progress, silent
from .storage import write_json

_FORMAT = "emmet.model.1"
_SHARD_SIZE = 5 * 10**9


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    delta: Delta,
    directory: str | PathLike[str],
    progress: Progress = silent,
    shard_size: int = _SHARD_SIZE,
) -> None:
    """Write a model that has the edits of `delta`, in its own dtype, with its tokenizer.

    Weights of more than `shard_size` bytes are spread over several files of at most that size, but for a larger tensor,
    which has one to itself. The folder's emmet.json says what was edited. Raises EmmetError if the folder holds files
    that emmet did not write.
    """
    with output_folder(Path(directory)) as folder, reporting(progress, "writing"):
        model.save_pretrained(folder, max_shard_size=shard_size)
        tokenizer.save_pretrained(folder)
        write_json(folder / MANIFEST, delta.manifest() | {"format": _FORMAT})
        _make_ordinary(folder)


def _make_ordinary(folder: Path) -> None:
    """Give all files the mode of a new one: safetensors makes files that only their owner may read."""
    mode = (folder / MANIFEST).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
