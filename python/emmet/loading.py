"""Models and tokenizers from the Hugging Face hub, from a folder or from a GGUF file."""

from __future__ import annotations

import importlib.util
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .architectures import discover, require_weights
from .errors import EmmetError, ModelError
from .progress import Progress, silent
from .storage import cache_folder, file_hash, first_line, new_folder

_causal_lm: Any = AutoModelForCausalLM  # transformers declares no useful types for its methods

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_GGUF_MAGIC = b"GGUF"


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    `name_or_path` is a name on the Hugging Face hub, a folder, or a GGUF file, which is dequantised once and then kept
    in the cache folder. `dtype` None is the checkpoint's own, float32 for GGUF. The device "auto" spreads the layers
    over all GPUs, by the package accelerate. No code that comes with a model is run.

    Raises ModelError if the model cannot be read, lacks weights, or is of a kind that emmet cannot edit.
    """
    spread = {"device_map": "auto"} if device == "auto" else {}
    if not spread:
        _check_device(device)
    with _readable(name_or_path):
        source = _source(name_or_path, progress)
    with _readable(name_or_path), reporting(progress, "loading"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = _causal_lm.from_pretrained(
            source, dtype=dtype or "auto", trust_remote_code=False, output_loading_info=True, **spread
        )
    discover(model)
    require_weights(model)
    if missing := sorted(report["missing_keys"]):
        message = f"{name_or_path} lacks {len(missing)} weights, such as {missing[0]}: get the whole checkpoint"
        raise ModelError(message)
    model.name_or_path = lasting_name(name_or_path)
    return (model if spread else model.to(device)).eval(), tokenizer


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        message = f"cannot use the device {device}: {first_line(error)}; choose another, such as cpu"
        raise ModelError(message) from error


def _source(name_or_path: str | Path, progress: Progress) -> str:
    """What transformers can load: a name on the hub, or a folder."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return str(_dequantised(path, progress))
    if path.is_dir():
        if not (path / "config.json").is_file():
            message = f"{path} is not a model folder, it has no config.json: give one, a GGUF file or a name on the hub"
            raise ModelError(message)
        return str(path)
    if isinstance(name_or_path, str) and _HUB_NAME.fullmatch(name_or_path) and path.suffix != ".gguf":
        return name_or_path
    message = f"{path} does not exist: give a model folder, a GGUF file or a name on the hub"
    raise ModelError(message)


def lasting_name(name_or_path: str | Path) -> str:
    """What names the same model in every working directory; not the cached folder of a GGUF file.

    Raises ModelError for a path that cannot be looked for.
    """
    with _readable(name_or_path):
        path = Path(name_or_path).expanduser()
        name = str(path.resolve() if path.exists() else name_or_path)
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _dequantised(path: Path, progress: Progress) -> Path:
    """The folder of the plain float32 checkpoint that a GGUF file holds, made when it is first asked for."""
    with path.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            message = f"{path} is not a GGUF file: give one, a model folder or a name on the hub"
            raise ModelError(message)
    folder = cache_folder() / "models" / f"{file_hash(path)[:32]}-transformers-{transformers.__version__}"
    if not folder.is_dir():
        require_gguf(path)
        progress("dequantising", 0, 1)
        with reporting(progress, "loading"), new_folder(folder) as temporary:
            _dequantise(path, temporary)
        progress("dequantising", 1, 1)
    return folder


def require_gguf(path: Path) -> None:
    """Raise ModelError unless the packages are installed that reading the GGUF file `path` takes."""
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            message = f"reading {path} needs the package {package}: pip install 'emmet-edit[gguf]'"
            raise ModelError(message)


def _dequantise(path: Path, folder: Path) -> None:
    with redirect_stderr(io.StringIO()):  # a progress bar that has no switch
        model = _causal_lm.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    config = model.config
    del config.quantization_config  # with it, neither saving nor loading treats the weights as plain
    plain = _causal_lm.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _readable(name_or_path: str | Path) -> Iterator[None]:
    try:
        yield
    except EmmetError:
        raise
    except Exception as error:  # whatever transformers, the hub, the network and the file formats raise
        message = (
            f"cannot load {name_or_path}: {first_line(error)}; expected a causal language model: "
            f"a model folder, a GGUF file or a name on the hub"
        )
        raise ModelError(message) from error


@contextmanager
def reporting(progress: Progress, stage: str) -> Iterator[None]:
    """Let transformers log only errors, and report its progress bars as those of `stage`, in the body."""

    def reported(_factory: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> logging.EmptyTqdm:
        return _Bar(progress, stage, *args, **kwargs)

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    previous = logging.set_tqdm_hook(reported)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
        logging.set_verbosity(verbosity)


class _Bar(logging.EmptyTqdm):
    """Stands in for a tqdm bar over a collection."""

    def __init__(self, progress: Progress, stage: str, items: Iterable[Any] = (), **_settings: Any) -> None:
        self._items = list(items)
        self._progress = progress
        self._stage = stage

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._items, 1):
            yield item
            self._progress(self._stage, done, len(self._items))
