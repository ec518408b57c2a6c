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


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    delta: Delta,
    directory: str | PathLike[str],
    progress: Progress = silent,
) -> None:
    """Write a model that has the edits of `delta`, in its own dtype, with its tokenizer.

    The folder's emmet.json says what was edited. Raises EmmetError if the folder holds files that emmet did not write.
    """
    with output_folder(Path(directory)) as folder, reporting(progress, "writing"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / MANIFEST, delta.manifest() | {"format": _FORMAT})
