"""Published settings by model and method, and those for all other models. The facts are in presets.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of one method for one model, and where they come from.

    `ridge` is the μ of `emmet.solve`, for a C that is the mean of k kᵀ over tokens. MEMIT's published weight λ of C is
    that ridge; published EMMET code weights C by w and adds ε to the system, which is the ridge ε·w. The L2 of
    published AlphaEdit code is `null_space_alpha`, at a ridge of 1.

    The loss is read after the model's last layer in every source, so it is no setting.
    """

    layers: tuple[int, ...]
    ridge: float | Literal["auto"]
    learning_rate: float
    steps: int
    clamp: float
    weight_decay: float
    source: str
    null_space_threshold: float | Literal["auto"] = "auto"
    null_space_alpha: float = 1.0


def find(model_config: PretrainedConfig, method: str) -> Preset | None:
    """What was published for this method and model, if anything was.

    A model is recognised by its shape, so that a local folder and a fine-tuned copy get their family's preset.
    """
    text_config = model_config.get_text_config()
    for row in _facts()["published"]:
        shapes = (_facts()["models"][model] for model in row["models"])
        if row["method"] == method and any(_has_shape(text_config, shape) for shape in shapes):
            return _preset(row, layers=row["layers"], ridge=row["ridge"])
    return None


def published_ridges() -> list[tuple[str, float]]:
    """Method and ridge of all that was published with one, without repetitions, by ridge."""
    ridges = {(row["method"], float(row["ridge"])) for row in _facts()["published"]}
    return sorted((found for found in ridges if found[0] in ("emmet", "memit")), key=lambda found: found[::-1])


def depth_relative(method: str, depth: int) -> Preset:
    """What to use for a model of `depth` layers for which nothing was published.

    One layer at a quarter of the depth (layer 7 of SmolLM2's 30); for methods that spread an edit, the five layers that
    end there.
    """
    row = _facts()["depth_relative"]
    last = depth // 4
    first = max(0, last + 1 - row["layer_count"][method])
    return _preset(row, layers=range(first, last + 1), ridge=row["ridge"][method])


def _has_shape(text_config: PretrainedConfig, shape: dict[str, Any]) -> bool:
    return all(getattr(text_config, name, None) == value for name, value in shape.items())


def _preset(row: dict[str, Any], *, layers: list[int] | range, ridge: float | Literal["auto"]) -> Preset:
    of_alphaedit = ("null_space_threshold", "null_space_alpha")
    return Preset(
        layers=tuple(layers),
        ridge=ridge,
        learning_rate=row["learning_rate"],
        steps=row["steps"],
        clamp=row["clamp"],
        weight_decay=row["weight_decay"],
        source=row["source"],
        **{name: row[name] for name in of_alphaedit if name in row},
    )


@cache
def _facts() -> dict[str, Any]:
    text = resources.files(__name__).joinpath("presets.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts
