"""A delta as a LoRA adapter of llama.cpp, which fits every quantisation of the model that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from ..delta import Delta, LayerDelta
from ..errors import ModelError
from ..loading import require_gguf
from ..output import MANIFEST, output_folder
from ..storage import first_line, write_json
from .lora import factorise, require_updates

_FORMAT = "emmet.gguf.1"
ADAPTER = "adapter.gguf"


@dataclass(frozen=True)
class Base:
    """What an adapter depends on in the GGUF file of its base model. `shapes` are in GGUF's order: d_in, d_out."""

    path: Path
    architecture: str
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def read(path: str | PathLike[str]) -> Base:
        """Read the head of a GGUF file. Raises ModelError if it is not one, or if the package gguf is missing."""
        path = Path(path)
        require_gguf(path)
        from gguf import GGUFReader, Keys

        try:
            reader = GGUFReader(path)
            architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
        except Exception as error:  # whatever the reader meets in a file that is something else, or damaged
            message = f"{path} is not the GGUF file of a model: {first_line(error)}"
            message += "; name that of the base model, as by `emmet export --model`"
            raise ModelError(message) from error
        return Base(path, architecture, {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors})

    def weight_name(self, layer: int, delta: LayerDelta) -> str:
        """The name of the weight that `delta` updates. Raises ModelError if the file has no such weight."""
        from gguf import MODEL_TENSOR, TENSOR_NAMES

        name = f"{TENSOR_NAMES[MODEL_TENSOR.FFN_DOWN].format(bid=layer)}.weight"
        expected, found = tuple(reversed(delta.update.shape)), self.shapes.get(name)
        if found != expected:
            message = f"expected a tensor {name} of shape {expected} in {self.path}, got {found or 'none'}"
            message += "; give the GGUF file, in one piece, of the model that the delta was made for"
            raise ModelError(message)
        return name


def save_gguf(delta: Delta, directory: str | PathLike[str], base: str | PathLike[str]) -> None:
    """Write a folder with adapter.gguf, which llama.cpp takes with `--lora` beside the base model.

    `base` is a GGUF file of the base model, from which names and the architecture are taken; the adapter's factors are
    float32. Raises ModelError if the delta does not fit the base, EmmetError if the folder holds files that emmet did
    not write.
    """
    require_updates(delta)
    model = Base.read(base)
    layers = {
        model.weight_name(layer, of_layer): factorise(of_layer.update) for layer, of_layer in delta.layers.items()
    }
    # llama.cpp scales by alpha / rank. All layers share the alpha, and so the rank.
    rank = max(1, *(factors.rank for factors in layers.values()))
    tensors = {}
    for name, factors in layers.items():
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = factors.padded(rank)
    with output_folder(Path(directory)) as folder:
        _write(folder / ADAPTER, model.architecture, rank, tensors)
        write_json(folder / MANIFEST, delta.manifest() | {"format": _FORMAT})


def _write(path: Path, architecture: str, rank: int, tensors: Mapping[str, Tensor]) -> None:
    from gguf import GGUFType, GGUFWriter, Keys

    writer = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
