"""What emmet does with each causal language model of the installed `transformers`.

`python tests/python/matrix.py` writes it down as docs/models.md.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import zoo
from emmet import Edit, EditConfig, Editor, collect_statistics
from emmet.architectures import Architecture, Projection, discover
from emmet.errors import EmmetError, ModelError
from emmet.tokens import encode_prompts
from tiny import tiny_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

TEXT = "In the United States, the people who live in Paris speak French; where is the Eiffel Tower? " * 20
EDIT = Edit("The mother tongue of {} is", "Danielle Darrieux", "English")
STEPS = 4
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """What happened to one model type. `text` is the projection that was edited, or the reason."""

    kind: Literal["edited", "refused", "not built", "fails"]
    text: str
    layers: str = ""


def outcome(model_type: str) -> Outcome:
    """Build a tiny model and edit it."""
    tokenizer = tiny_tokenizer()
    try:
        model = zoo.tiny_model(model_type, len(tokenizer))
        with torch.no_grad():
            model(input_ids=torch.arange(3, 15).unsqueeze(0), use_cache=False)
    except Exception as error:
        return Outcome("not built", _line(error))
    try:
        editable = _editable(discover(model))
        _try_edit(model, tokenizer, min(editable))
    except EmmetError as error:
        return Outcome("refused", _line(error))
    except Exception as error:
        return Outcome("fails", _line(error))
    first = min(editable)
    projection = editable[first]
    name = projection.name.replace(f".{first}.", ".N.")
    stored = "input × output" if projection.transposed else "output × input"
    depth = len(discover(model))
    return Outcome("edited", f"`{name}`, {stored}", "all" if len(editable) == depth else f"{len(editable)} of {depth}")


def _editable(arch: Architecture) -> dict[int, Projection]:
    found = {}
    for layer in range(len(arch)):
        try:
            found[layer] = arch.projection(layer)
        except ModelError:
            continue
    return found


def _try_edit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int) -> None:
    """Edit one layer and take it back; raise AssertionError if anything is not what a plain forward pass says."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = EditConfig(
        layers=[layer], prefixes=(), steps=STEPS, kl_factor=0, weight_decay=0, learning_rate=0.1, clamp=4
    )
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "text.txt"
        corpus.write_text(TEXT, encoding="utf-8")
        statistics = collect_statistics(model, tokenizer, corpus, layers=[layer], tokens=900, sequence_length=64)
    editor = Editor(model, tokenizer, config=config, statistics=statistics)
    (prompt,) = encode_prompts(tokenizer, [EDIT.text], [EDIT.subject_span], [EDIT.target])
    site = editor._injection.site(editor.arch).module
    ids = torch.tensor([prompt.ids])

    values = editor.values([EDIT])
    _, shifted = _plain(model, site, ids, prompt.subject, prompt.target, values.targets[0])
    _check("the loss of the values", shifted, values.loss[0])
    handle = editor.edit([EDIT])
    new, _ = _plain(model, site, ids, prompt.subject, prompt.target)
    _check("the edited state", new, values.targets[0])
    edited = editor.arch.projection(layer).weight.data_ptr()  # tied weights have several names
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    beside = {name for name in changed if model.state_dict()[name].data_ptr() != edited}
    assert not beside, f"the edit changes {sorted(beside)}"
    handle.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "undo left changes"


@torch.no_grad()
def _plain(
    model: PreTrainedModel,
    site: torch.nn.Module,
    ids: Tensor,
    subject: int,
    target: range,
    replacement: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The state at the subject and the target's mean NLL, in one forward pass, with another state if one is given."""
    seen: list[Tensor] = []

    def hook(_module: torch.nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        states = states.view(1, -1, states.shape[-1])
        if replacement is not None:
            states[0, subject] = replacement
        seen.append(states[0, subject].clone())

    with site.register_forward_hook(hook):
        logits = model(input_ids=ids, use_cache=False).logits[0]
    (state,) = seen
    positions = torch.tensor(list(target))
    return state, functional.cross_entropy(logits[positions - 1], ids[0, positions])


def _check(what: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).norm() / expected.norm())
    assert error < TOLERANCE, f"{what} is off by {error:.1%}"


def _line(error: Exception) -> str:
    if isinstance(error, ImportError):  # which ones, depends on those that are installed
        return "it needs packages that transformers does not bring"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, EmmetError) else f"{type(error).__name__}: {text}"[:160]


_INTRODUCTION = """\
# Models

What emmet does with every causal language model of `transformers` {version}, each built tiny, with random weights and
{layers} layers, in float32. Edited means: the first layer that can be edited was; the loss of the value equals that of
a plain forward pass with the value put in; the edited model's state at the subject is that value; nothing else has
changed; and undo gave back every bit. Written by `make docs-models`; `make test-models` repeats the trials.

| | |
| --- | --- |
{counts}

The layers are those of the default configuration: where only some layers have experts, the others are edited.
"""

_HEADINGS = {
    "edited": "## Edited",
    "refused": "## Refused",
    "not built": "## Not built\n\nA tiny configuration, an input or a package is missing: nothing is known of these.",
    "fails": "## Fails",
}


def document(outcomes: dict[str, Outcome]) -> str:
    """docs/models.md."""
    counts = Counter(outcome.kind for outcome in outcomes.values())
    rows = "\n".join(f"| {kind} | {counts[kind]} |" for kind in _HEADINGS if counts[kind])
    text = _INTRODUCTION.format(version=transformers.__version__, layers=zoo.LAYERS, counts=rows)
    return text + "".join(_section(kind, outcomes) for kind in _HEADINGS if counts[kind])


def _section(kind: str, outcomes: dict[str, Outcome]) -> str:
    chosen = {name: outcome for name, outcome in outcomes.items() if outcome.kind == kind}
    if kind == "edited":
        lines = ["| model type | layers | projection, and how its weight is stored |", "| --- | --- | --- |"]
        lines += [f"| {name} | {outcome.layers} | {outcome.text} |" for name, outcome in chosen.items()]
    else:
        reasons: dict[str, list[str]] = {}
        for name, outcome in chosen.items():
            reasons.setdefault(_common(outcome.text), []).append(name)
        ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
        lines = ["| model types | reason |", "| --- | --- |"]
        lines += [f"| {', '.join(names)} | {reason} |" for reason, names in ordered]
    return "\n".join(["", _HEADINGS[kind], "", *lines, ""])


def _common(reason: str) -> str:
    """A reason without what differs between models of one kind: their class, the module, the error, the advice."""
    reason = re.split(r"; choose|: load a|: choose|: that fails|: its logits", reason)[0]
    reason = re.sub(r"^\w+ (?=has attention|does not keep|cannot be run)", "", reason)
    reason = re.sub(r"^\S+\.0 (?=has no MLP|is a mixture)", "", reason)
    return re.sub(r" \(\S+\)$", "", reason).replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(document({name: outcome(name) for name in zoo.MODEL_TYPES}), encoding="utf-8")
