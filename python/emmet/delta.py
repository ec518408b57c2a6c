"""An edit as a folder: low-rank updates in safetensors files, and a JSON manifest that says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ._core import Diagnostics, Preservation, Update
from .architectures import Architecture, Projection, discover, require_weights
from .config import EditConfig
from .edits import Edit
from .errors import FormatError, ModelError
from .fingerprint import tensor_digest
from .output import MANIFEST, output_folder
from .storage import parse_json, write_json
from .weights import Backup

_FORMAT = "emmet.delta.1"


@dataclass(frozen=True)
class LayerReport:
    """What one solve did: to which layer, for which edits (their indices, from 0), and what it found out."""

    layer: int
    edits: range
    diagnostics: Diagnostics


@dataclass(frozen=True)
class LayerDelta:
    """The update of one layer's MLP output projection, and the digest of the weight that it was made for.

    `transposed` says that the weight is stored as [d_in, d_out]; the update never is.
    """

    module: str
    transposed: bool
    base_digest: str
    update: Update


@dataclass(frozen=True)
class Delta:
    """Edits with the updates that make them, by layer.

    `base` is where the model that they were made for was loaded from, None if that is unknown. `reports` tell how each
    solve went.
    """

    edits: tuple[Edit, ...]
    config: EditConfig
    prefixes: tuple[str, ...]
    base: str | None
    layers: Mapping[int, LayerDelta]
    reports: tuple[LayerReport, ...]

    def apply(self, model: PreTrainedModel) -> Backup:
        """Add the updates to the model's weights in place, and return what takes them back.

        By the delta of an editor's first edit, and by `Editor.delta`, they become the editor's, bit for bit. Raises
        ModelError, before anything is changed, if the weights are not those that it was made for.
        """
        arch = discover(model)
        require_weights(model)
        projections = {layer: self._checked_projection(arch, layer) for layer in self.layers}
        backup = Backup(projection.weight for projection in projections.values())
        try:
            for layer, projection in projections.items():
                self.layers[layer].update.apply_(projection.weight, projection.transposed)
        except BaseException:
            backup.restore()
            raise
        return backup

    def compressed(self, metrics: Mapping[int, Preservation], rank: int) -> Delta:
        """The same edits by updates of at most this rank, each the best in the metric of its layer.

        Edits are met less exactly (see `Update.compress`); `reports` remain those of the solves.
        """
        layers = {
            layer: replace(delta, update=delta.update.compress(metrics[layer], rank=rank))
            for layer, delta in self.layers.items()
        }
        return replace(self, layers=layers)

    def save(self, directory: str | PathLike[str]) -> None:
        """Write a folder with emmet.json and one safetensors file a layer, which C++ reads as an `emmet::Update`.

        Raises EmmetError if the folder holds files that emmet did not write.
        """
        with output_folder(Path(directory)) as folder:
            for layer, delta in self.layers.items():
                delta.update.save(folder / _file_name(layer))
            write_json(folder / MANIFEST, self.manifest())

    @staticmethod
    def load(directory: str | PathLike[str]) -> Delta:
        """Read a folder that `save` wrote. Raises FormatError if it is not one, or damaged."""
        folder = Path(directory)
        try:
            manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
            return _from_manifest(manifest, folder)
        except FormatError:
            raise
        except OSError as error:
            message = f"cannot read the delta {folder}: {error.strerror}; expected a folder that `emmet edit` wrote"
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{folder / MANIFEST} is not the manifest of a delta; write it anew with `emmet edit`"
        raise FormatError(message)

    def _checked_projection(self, arch: Architecture, layer: int) -> Projection:
        projection = arch.projection(layer)
        delta = self.layers[layer]
        if projection.name != delta.module or tensor_digest(projection.weight).hex() != delta.base_digest:
            message = f"expected the model that the delta was made for, got another weight in {projection.name}"
            message += "; load that model, without edits and in the same dtype"
            raise ModelError(message)
        return projection

    def manifest(self) -> dict[str, Any]:
        """All but the updates themselves, as JSON: the edits, how they were made, and how the solves went."""
        return {
            "format": _FORMAT,
            "emmet": version("emmet-edit"),
            "edits": [asdict(edit) for edit in self.edits],
            "config": json.loads(self.config.to_json()),
            "prefixes": list(self.prefixes),
            "base": self.base,
            "layers": {
                str(layer): {
                    "module": delta.module,
                    "transposed": delta.transposed,
                    "base_digest": delta.base_digest,
                }
                for layer, delta in self.layers.items()
            },
            "reports": [
                {
                    "layer": report.layer,
                    "edits": [report.edits.start, report.edits.stop],
                    **report.diagnostics.to_dict(),
                }
                for report in self.reports
            ],
        }


def _file_name(layer: int) -> str:
    return f"layer.{layer}.safetensors"


def _from_manifest(manifest: Any, folder: Path) -> Delta:
    if manifest["format"] != _FORMAT:
        message = f"expected a delta of format {_FORMAT}, got {manifest['format']!r} in {folder}; "
        message += "give a folder that this emmet's `emmet edit` or Delta.save wrote"
        raise FormatError(message)
    return Delta(
        edits=tuple(Edit(**edit) for edit in manifest["edits"]),
        config=EditConfig.from_json(json.dumps(manifest["config"])),
        prefixes=_texts(manifest["prefixes"]),
        base=None if manifest["base"] is None else _text(manifest["base"]),
        layers={
            int(layer): _layer_delta(Update.load(folder / _file_name(int(layer))), **entry)
            for layer, entry in manifest["layers"].items()
        },
        reports=tuple(_report(**report) for report in manifest["reports"]),
    )


def _layer_delta(update: Update, *, module: str, transposed: bool, base_digest: str) -> LayerDelta:
    if not isinstance(transposed, bool):
        raise TypeError
    return LayerDelta(_text(module), transposed, _text(base_digest), update)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_text, value))


def _report(*, layer: int, edits: Sequence[int], **diagnostics: float) -> LayerReport:
    return LayerReport(layer, range(*edits), Diagnostics(**diagnostics))


def summed(updates: Sequence[Update]) -> Update:
    """The sum of updates of one weight."""
    if len(updates) == 1:
        return updates[0]
    if all(update.is_low_rank for update in updates):
        left = torch.cat([update.left for update in updates], dim=1)
        return Update.from_factors(left, torch.cat([update.right for update in updates]))
    total = updates[0].dense()
    for update in updates[1:]:
        total += update.dense()
    return Update.from_dense(total)
