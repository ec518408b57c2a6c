"""How edits are made: one frozen `EditConfig`, checked when it is made."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from . import presets
from .errors import ConfigError
from .storage import parse_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Method = Literal["rome", "memit", "emmet", "alphaedit"]
METHODS: tuple[Method, ...] = get_args(Method)
Optimizer = Literal["adam", "newton", "gradient"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

# What decides a solve for given keys and residuals, and what decides the prefixes.
OF_THE_SOLVE = ("method", "layers", "ridge", "null_space_threshold", "null_space_alpha", "absorb", "absorb_prompts")
OF_THE_PREFIXES = ("prefixes", "prefix_count", "prefix_length", "seed")
_DECIDED_BY_PRESET = tuple(field.name for field in fields(presets.Preset) if field.name != "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class EditConfig:
    """All settings of an edit. `resolve` fills in what is None from the presets for a model. Raises ConfigError.

    method: rome, memit, emmet or alphaedit. They differ in the ridge and the metric only (arXiv 2403.14236).
    layers: the decoder layers to edit, from 0; kept sorted. An edit is spread over them as in MEMIT.
    ridge: μ of `emmet.solve`. ROME has 0 and MEMIT more than 0; "auto" is the smallest that keeps the system
        well-conditioned.
    null_space_threshold: of alphaedit: eigenvalues of the second moment below it count as zero. "auto" is their mean,
        which suits a second moment of any scale.
    null_space_alpha: α of `Preservation.null_space`, for alphaedit: more of it keeps updates smaller.
    absorb: weight of the keys K_p of earlier edits among the memories that a later edit preserves, next to a weight of
        1 of the edits at hand. With a ridge μ > 0, C + absorb/μ · K_pK_pᵀ takes the place of C; where the ridge is 0 or
        "auto", C + absorb · K_pK_pᵀ. AlphaEdit's is 1; 0 forgets earlier edits, as published ROME, MEMIT and EMMET do.
    absorb_prompts: whether K_p holds all keys of earlier edits' prompts, and not their own alone. Earlier edits hold
        better, and several layers have room for that; in one layer, later edits pay for it.
    optimizer: what finds the value vector v = h + δ: "adam" as published; "newton", in half the steps; or "gradient",
        one step along it.
    learning_rate: of Adam.
    contexts_per_step: of Adam: in how many of its contexts, the bare prompt and the prefixed ones, an edit is evaluated
        in each step; they take turns. None evaluates all of them in each, as published, and so do too few steps.
    steps: the most that are taken, each one forward and backward pass; 1 for "gradient".
    clamp: the largest ‖δ‖/‖h‖.
    weight_decay: weight of ‖δ‖/‖h‖² in the loss.
    kl_factor: weight in the loss of the KL divergence from the unedited model, at the subject in "{subject} is a".
    stop_loss: an edit whose loss falls below it is done.
    prefixes: texts put before each prompt, so that the edit holds in context. None lets the model write
        `prefix_count` of them, `prefix_length` tokens each, from `seed`.
    batch_size: how many edits are optimised together, at most: fewer where memory does not suffice.
    """

    method: Method = "emmet"
    layers: Sequence[int] | None = None
    ridge: float | Literal["auto"] | None = None
    null_space_threshold: float | Literal["auto"] | None = None
    null_space_alpha: float | None = None
    absorb: float = 1.0
    absorb_prompts: bool = False
    optimizer: Optimizer = "adam"
    learning_rate: float | None = None
    contexts_per_step: int | None = 2
    steps: int | None = None
    clamp: float | None = None
    weight_decay: float | None = None
    kl_factor: float = 0.0625
    stop_loss: float = 0.05
    prefixes: Sequence[str] | None = None
    prefix_count: int = 5
    prefix_length: int = 10
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))
        if self.prefixes is not None:
            object.__setattr__(self, "prefixes", _checked_sequence("prefixes", self.prefixes, _TEXT))
        if self.ridge is not None:
            _check_ridge(self.method, self.ridge)
        if self.optimizer == "gradient" and self.steps not in (None, 1):
            message = f'optimizer "gradient" takes 1 step, got steps = {self.steps!r}: leave steps out'
            raise ConfigError(message)
        for name, rule in _RULES.items():
            value = getattr(self, name)
            undecided = value is None and name in _DECIDED_BY_PRESET
            if not undecided and not rule.accepts(value):
                message = f"{name} must be {rule.expected}, got {value!r}"
                raise ConfigError(message)

    def resolve(self, model_config: PretrainedConfig) -> ResolvedConfig:
        """These settings for one model: what is None comes from its preset, and the layers exist in it."""
        depth = _depth(model_config)
        preset = presets.find(model_config, self.method) or presets.depth_relative(self.method, depth)
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _DECIDED_BY_PRESET:
            if settings[name] is None:
                settings[name] = getattr(preset, name)
        if self.optimizer == "gradient":
            settings["steps"] = 1
        resolved = ResolvedConfig(**settings)
        deepest = resolved.layers[-1]
        if deepest >= depth:
            message = f"layer {deepest} does not exist: choose layers from 0 to {depth - 1}, the model has {depth}"
            raise ConfigError(message)
        return resolved

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> EditConfig:
        """Reads what `to_json` wrote. Keys that are left out keep their defaults."""
        try:
            pairs = parse_json(text, object_pairs_hook=tuple)  # pairs keep repeated keys, which are an error
        except ValueError as error:
            message = f"settings are not valid JSON: {error}"
            raise ConfigError(message) from None
        return EditConfig(**_checked_settings(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig(EditConfig):
    """An `EditConfig` in which nothing is left for a preset to decide: what `EditConfig.resolve` returns."""

    layers: tuple[int, ...]
    ridge: float | Literal["auto"]
    null_space_threshold: float | Literal["auto"]
    null_space_alpha: float
    learning_rate: float
    steps: int
    clamp: float
    weight_decay: float


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers that the command line calls "4-8,10": numbers and inclusive ranges, none of them twice."""
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            message = f'expected layers as in "7" or "4-8,10", got {part!r} in {text!r}'
            raise ConfigError(message)
        layers += range(first, last + 1)
    return _checked_layers(layers)


class _Rule(NamedTuple):
    expected: str
    accepts: Callable[[Any], bool]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


_POSITIVE = _Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE = _Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
_COUNT = _Rule("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
_WHOLE = _Rule("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
_TEXT = _Rule("a text", lambda value: isinstance(value, str))

_RULES = {
    "null_space_threshold": _Rule(
        'a number above 0 or "auto"', lambda value: value == "auto" or _POSITIVE.accepts(value)
    ),
    "null_space_alpha": _POSITIVE,
    "absorb": _NOT_NEGATIVE,
    "absorb_prompts": _Rule("True or False", lambda value: isinstance(value, bool)),
    "learning_rate": _POSITIVE,
    "contexts_per_step": _Rule(
        "a whole number of at least 1, or None for all contexts", lambda value: value is None or _COUNT.accepts(value)
    ),
    "steps": _COUNT,
    "clamp": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "kl_factor": _NOT_NEGATIVE,
    "stop_loss": _NOT_NEGATIVE,
    "prefix_count": _WHOLE,
    "prefix_length": _COUNT,
    "seed": _WHOLE,
    "batch_size": _COUNT,
}

_ANY_RIDGE = _Rule('a number of at least 0 or "auto"', lambda value: value == "auto" or _NOT_NEGATIVE.accepts(value))
_RIDGE_RULES: dict[Method, _Rule] = {
    "rome": _Rule("0 (emmet takes any)", lambda value: _is_number(value) and value == 0),
    "memit": _Rule("a number above 0 (emmet takes any)", _POSITIVE.accepts),
    "emmet": _ANY_RIDGE,
    "alphaedit": _ANY_RIDGE,
}


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        message = f"unknown {name} {value!r}{_suggestion(str(value), choices)}: choose {', '.join(choices)}"
        raise ConfigError(message)


def _check_ridge(method: Method, ridge: object) -> None:
    rule = _RIDGE_RULES[method]
    if not rule.accepts(ridge):
        message = f"the ridge of {method} must be {rule.expected}, got {ridge!r}"
        raise ConfigError(message)


def _checked_layers(layers: Any) -> tuple[int, ...]:
    checked = _checked_sequence("layers", layers, _WHOLE)
    if not checked:
        message = "layers must name at least one layer, got none: leave layers out to take the preset's"
        raise ConfigError(message)
    repeated = _repeated(checked)
    if repeated:
        message = f"layers must differ, got {repeated[0]} more than once in {layers!r}"
        raise ConfigError(message)
    return tuple(sorted(checked))


def _checked_sequence(name: str, values: Any, rule: _Rule) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(rule.accepts, values)):
        message = f"{name} must be a sequence in which each is {rule.expected}, got {values!r}"
        raise ConfigError(message)
    return tuple(values)


def _checked_settings(pairs: object) -> dict[str, Any]:
    if not isinstance(pairs, tuple):
        message = f"settings must be a JSON object, got {pairs!r}"
        raise ConfigError(message)
    known = [field.name for field in fields(EditConfig)]
    for name, _ in pairs:
        if name not in known:
            message = f"unknown setting {name!r}{_suggestion(name, known)}: choose from {', '.join(known)}"
            raise ConfigError(message)
    repeated = _repeated(name for name, _ in pairs)
    if repeated:
        message = f"setting {repeated[0]!r} is given more than once: keep one"
        raise ConfigError(message)
    return dict(pairs)


def _depth(model_config: PretrainedConfig) -> int:
    depth: Any = getattr(model_config.get_text_config(), "num_hidden_layers", None)
    if not _COUNT.accepts(depth):
        message = f"expected a model config with num_hidden_layers, got {type(model_config).__name__} with {depth!r}"
        raise ConfigError(message)
    return int(depth)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
