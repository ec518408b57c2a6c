"""What several commands read before they start: the model and the settings."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import EditConfig
from ..errors import ConfigError, EmmetError
from ..output import MANIFEST, check_output
from ..progress import Progress
from .terminal import Stopwatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..statistics import Statistics


def load_model(
    options: argparse.Namespace, watch: Stopwatch, progress: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer that the command line names."""
    import torch

    from ..loading import load

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with watch.stage("load"):
        return load(options.model, dtype=dtype, device=options.device, progress=progress)


def edit_config(options: argparse.Namespace) -> EditConfig:
    """The settings of --config, where it is given, with those that have an option of their own."""
    config = EditConfig() if options.config is None else read_config(options.config)
    chosen = {name: getattr(options, name, None) for name in ("method", "layers", "ridge", "seed")}
    return replace(config, **{name: value for name, value in chosen.items() if value is not None})


def read_config(path: Path) -> EditConfig:
    try:
        return EditConfig.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; expected a JSON file of settings"
    except ValueError as error:  # not UTF-8, or a ConfigError
        message = f"{path}: {error}"
    raise ConfigError(message)


def read_statistics(folder: Path, layers: Collection[int]) -> Statistics | Path:
    """The statistics of `layers` that a folder has; the folder itself where only the model tells the layers.

    Raises EmmetError, before the model is loaded, if they are missing or damaged.
    """
    from ..statistics import Statistics

    statistics = Statistics.load(folder, layers)
    return statistics if layers else folder


class UnchangedLedger:
    """The folder of a ledger, new or not, that nothing else may write while a command works on its edits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = self._read()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Check, and have other commands wait to do so until the body has written the ledger.

        What is locked is the folder around it; where the file system knows no locks, the check is all there is.
        """
        around = self._folder.resolve().parent
        around.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(around, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._check()
            yield
        finally:
            os.close(descriptor)

    def _check(self) -> None:
        """Raise EmmetError if the ledger is not what it was: its new edits would be lost."""
        if self._read() != self._manifest:
            message = (
                f"expected the ledger {self._folder} as it was when this command began, got a changed one: another "
            )
            message += "command has written it meanwhile; run this one again"
            raise EmmetError(message)

    def _read(self) -> bytes | None:
        try:
            return (self._folder / MANIFEST).read_bytes()
        except OSError:
            return None


def check_ledger(ledger: Path, out: Path, *inputs: str | Path | None) -> None:
    """Raise EmmetError unless the folder of a ledger can be replaced without the output `out` or an input."""
    if out.resolve().is_relative_to(ledger.resolve()) or ledger.resolve().is_relative_to(out.resolve()):
        message = f"the ledger {ledger} and the output {out} would replace one another: name folders apart"
        raise ConfigError(message)
    check_output(ledger, "ledger")
    check_apart(ledger, *inputs)


def check_apart(out: Path, *inputs: str | Path | None) -> None:
    """Raise ConfigError if the folder `out`, which is to be replaced, holds an input."""
    for given in inputs:
        # Unlike Path.exists, os.access raises nothing for what cannot be looked for: whoever reads it says so.
        on_hub = isinstance(given, str) and not os.access(given, os.F_OK)
        if given is not None and not on_hub and Path(given).resolve().is_relative_to(out.resolve()):
            message = f"the output would replace {given}, which is read: name another folder than {out}"
            raise ConfigError(message)
