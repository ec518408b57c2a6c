"""Bad input: all is refused in one line that says what to do, with exit code 2; nothing is written or changed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from emmet import Edit, EditConfig, EditError, Editor, NonFiniteError, Preservation, Update, cli
from emmet import editor as emmet_editor
from tiny import tiny_model, tiny_tokenizer
from workspace import EDITS, contents, fill, save_model, write_lines

MOTHER_TONGUE = EDITS[0]
EASYEDIT = {"prompt": "The mother tongue of Michel Rocard is", "subject": "Michel Rocard", "target_new": "English"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, edits, a corpus, statistics of layers 1 and 2, and the delta of an earlier edit."""
    folder = fill(tmp_path_factory.mktemp("workspace"))
    collect(folder / "model", folder / "text.txt", folder / "stats")
    arguments = ["edit", folder / "model", folder / "edits.jsonl", "--stats", folder / "stats", "--layers", "1"]
    assert cli.main([*map(str, arguments), "--out", str(folder / "delta"), "--values", str(folder / "values")]) == 0
    return folder


def collect(model: Path, corpus: Path, out: Path, layers: str = "1-2") -> Path:
    arguments = ["stats", model, "--corpus", corpus, "--layers", layers, "--out", out]
    assert cli.main(list(map(str, arguments))) == 0
    return out


class Refused:
    """Runs `emmet` on bad input and checks what all of it has in common."""

    def __init__(self, folder: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.scratch = scratch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> str:
        """The error message of a run that must fail, and that must leave all files as they are."""
        before = contents(self.folder), contents(self.scratch)
        self._capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == 2
        printed = self._capsys.readouterr()
        assert printed.out == ""
        assert (contents(self.folder), contents(self.scratch)) == before
        assert printed.err.count("\n") == 1
        line = printed.err.rsplit("\r", 1)[-1]  # bars are cleared
        assert line.startswith("emmet: error: ")
        return line.removeprefix("emmet: error: ").removesuffix("\n")

    def edit(self, *options: str | Path, model: Path | None = None, edits: Path | None = None) -> str:
        """The error message of `emmet edit` into the folder of an earlier delta, which must stay."""
        sources = (model or self.folder / "model", edits or self.folder / "edits.jsonl")
        statistics = () if "--stats" in options else ("--stats", self.folder / "stats")
        return self("edit", *sources, "--layers", "1", *statistics, "--out", self.folder / "delta", *options)

    def edit_of(self, *records: Mapping[str, Any]) -> str:
        """The error message of `emmet edit` with these edits."""
        return self.edit(edits=write_lines(self.scratch / "bad.jsonl", records))

    def edit_of_text(self, text: str) -> str:
        """The error message of `emmet edit` with a file of this text."""
        path = self.scratch / "bad.jsonl"
        path.write_text(text)
        return self.edit(edits=path)


@pytest.fixture
def refused(
    folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Refused(folder, tmp_path, capsys)


# Edits


def test_subject_not_in_the_prompt(refused: Refused) -> None:
    assert "the subject 'Lyon' does not occur in the prompt" in refused.edit_of({**EASYEDIT, "subject": "Lyon"})


@pytest.mark.parametrize(("prompt", "times"), [("The mother tongue is", 0), ("{} said that {} is", 2)])
def test_prompt_without_exactly_one_place_for_the_subject(refused: Refused, prompt: str, times: int) -> None:
    message = refused.edit_of({**MOTHER_TONGUE, "prompt": prompt})
    assert f'prompt must hold "{{}}" exactly once, got it {times} times' in message


@pytest.mark.parametrize("target", ["", "  ", None])
def test_empty_target(refused: Refused, target: str | None) -> None:
    assert "target must be a text that is not blank" in refused.edit_of({**MOTHER_TONGUE, "target": target})


def test_contradicting_edits(refused: Refused) -> None:
    message = refused.edit_of(MOTHER_TONGUE, {**MOTHER_TONGUE, "target": "German"})
    assert message.startswith("edit 2 contradicts edit 1:")
    assert message.endswith("keep one of them")


def test_unknown_key(refused: Refused) -> None:
    message = refused.edit_of(MOTHER_TONGUE, {**MOTHER_TONGUE, "tagret": "English"})
    assert "line 2: unknown key 'tagret': expected the keys prompt, subject, target" in message


def test_repeated_key(refused: Refused) -> None:
    message = refused.edit_of_text('{"prompt": "{} is", "subject": "a", "target": "b", "target": "c"}')
    assert "line 1: repeated key 'target'" in message


@pytest.mark.parametrize(
    "text", ['{"prompt": ', '["a"', "prompt", "\x00", '{"prompt": "{} is", "subject": "a", "target": 1}']
)
def test_malformed_file(refused: Refused, text: str) -> None:
    assert "bad.jsonl, line 1: " in refused.edit_of_text(text)


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty_file(refused: Refused, text: str) -> None:
    assert "holds no edits: expected a JSON array or one JSON object a line" in refused.edit_of_text(text)


def test_missing_file(refused: Refused, tmp_path: Path) -> None:
    message = refused.edit(edits=tmp_path / "missing.jsonl")
    assert message == f"cannot read {tmp_path / 'missing.jsonl'}: No such file or directory; expected a file of edits"


def test_subject_longer_than_the_context(refused: Refused) -> None:
    message = refused.edit_of({**MOTHER_TONGUE, "subject": "Danielle " * 300})
    assert "expected at most 256 tokens, the context of the model" in message
    assert message.endswith("shorten its prompt or the prefixes")


def test_prompt_longer_than_the_context_in_an_evaluation(refused: Refused, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "bad.jsonl", [{**MOTHER_TONGUE, "paraphrases": ["Danielle " * 300]}])
    message = refused("eval", refused.folder / "model", data, "--report", tmp_path / "report")
    assert "this model has 256" in message


def test_coinciding_keys(refused: Refused) -> None:
    """The key of a subject at the start of its prompt does not depend on what follows."""
    settings = refused.scratch / "settings.json"
    settings.write_text('{"prefixes": [], "ridge": 0}')
    edits = [{**MOTHER_TONGUE, "prompt": prompt} for prompt in ("{} speaks", "{} is from")]
    path = write_lines(refused.scratch / "bad.jsonl", edits)
    message = refused.edit("--config", settings, edits=path)
    assert "got dependent ones of edits {1, 2}; leave some of each group out" in message


# Settings


def test_unknown_method(refused: Refused) -> None:
    message = refused.edit("--method", "emmett")
    assert message == "unknown method 'emmett', did you mean 'emmet'?: choose rome, memit, emmet, alphaedit"


def test_null_space_that_is_empty(refused: Refused) -> None:
    settings = refused.scratch / "settings.json"
    settings.write_text('{"method": "alphaedit", "prefixes": [], "null_space_threshold": 1e-30}')
    message = refused.edit("--config", settings)
    assert message.startswith("expected a null space, got none: every eigenvalue of second_moment is at least")


@pytest.mark.parametrize("command", ["edit", "info", "stats"])
def test_layer_out_of_range(refused: Refused, command: str) -> None:
    model, out = refused.folder / "model", refused.scratch / "out"
    arguments: dict[str, tuple[str | Path, ...]] = {
        "edit": (refused.folder / "edits.jsonl", "--out", out),
        "info": (),
        "stats": ("--out", out),
    }
    message = refused(command, model, *arguments[command], "--layers", "2,4")
    assert message.startswith("layer 4 ")
    assert "from 0 to 3" in message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--layers", "4-3", 'expected layers as in "7" or "4-8,10", got \'4-3\''),
        ("--ridge", "much", "expected a number or \"auto\", got 'much'"),
        ("--ridge", "-1", 'the ridge of emmet must be a number of at least 0 or "auto", got -1.0'),
        ("--ridge", "nan", "the ridge of emmet must be a number of at least 0"),
        ("--limit", "0", "expected a whole number of at least 1, got '0'"),
        ("--seed", "99999999999999999999", "expected a whole number from 0 to 4294967295"),
        ("--format", "onnx", "invalid choice: 'onnx'"),
        ("--corpus", "text.txt", "not allowed with argument --stats"),
        ("--device", "gpu", "cannot use the device gpu"),
        ("--dtype", "int8", "invalid choice: 'int8'"),
        ("--depth", "3", "unrecognized arguments: --depth 3; see `emmet"),
    ],
)
def test_bad_option(refused: Refused, option: str, value: str, expected: str) -> None:
    assert expected in refused.edit(option, value)


def test_no_command(refused: Refused) -> None:
    assert refused() == "the following arguments are required: COMMAND; see `emmet --help`"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('{"stpes": 3}', "unknown setting 'stpes', did you mean 'steps'?"),
        ('{"steps": 3, "steps": 4}', "setting 'steps' is given more than once: keep one"),
        ('{"steps": 0}', "steps must be a whole number of at least 1, got 0"),
        ("{", "settings are not valid JSON"),
        ("[]", "settings must be a JSON object"),
        (b"\xff", "settings.json: "),
        (None, "settings.json: No such file or directory; expected a JSON file of settings"),
    ],
)
def test_bad_settings_file(refused: Refused, settings: str | bytes | None, expected: str) -> None:
    path = refused.scratch / "settings.json"
    if settings is not None:
        path.write_bytes(settings if isinstance(settings, bytes) else settings.encode())
    message = refused.edit("--config", path)
    assert expected in message
    assert str(path) in message


# Statistics


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seed": 1}, "the statistics of layer 1 are of another model"),
        ({"intermediate_size": 96}, "the statistics of layer 1 are for keys of width 80, but this model's have 96"),
    ],
)
def test_statistics_of_another_model(refused: Refused, settings: dict[str, int], expected: str) -> None:
    message = refused.edit(model=save_model(refused.scratch / "other", **settings))
    assert expected in message
    assert "collect them" in message


def test_statistics_of_other_layers(refused: Refused) -> None:
    message = refused.edit("--layers", "3")
    assert message.startswith("there are no statistics of layer 3, only of 1, 2: collect them with `emmet stats")


@pytest.mark.parametrize("make", [False, True])
def test_folder_without_statistics(refused: Refused, make: bool) -> None:
    path = refused.scratch / "stats"
    if make:
        path.mkdir()
    assert refused.edit("--stats", path).startswith(f"{path} has no statistics: collect them with `emmet stats")


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """With another length of the header, the first eight bytes."""
    return bytes([*content[:6], content[6] ^ 0xFF, *content[7:]])


def renamed(content: bytes) -> bytes:
    """With another name for what is needed from it."""
    return content.replace(b"second_moment", b"second_momemt").replace(b'"left', b'"lift').replace(b"down_", b"dawn_")


def nothing(_content: bytes) -> bytes:
    return b""


DAMAGES = pytest.mark.parametrize("damage", [truncated, flipped, renamed, nothing])
Damage = Callable[[bytes], bytes]


@DAMAGES
def test_damaged_statistics(refused: Refused, damage: Damage) -> None:
    stats = refused.scratch / "stats"
    stats.mkdir()
    path = stats / "layer.1.safetensors"
    path.write_bytes(damage((refused.folder / "stats" / path.name).read_bytes()))
    assert str(path) in refused.edit("--stats", stats)


def test_delta_instead_of_statistics(refused: Refused) -> None:
    message = refused.edit("--stats", refused.folder / "delta", "--out", refused.scratch / "out")
    assert 'expected the format "emmet statistics 1", got ' in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot read "), ("", "text.txt holds no text"), (b"\xff\xfe" * 999, "is not a text file in UTF-8")],
)
def test_bad_corpus(refused: Refused, content: str | bytes | None, expected: str) -> None:
    path = refused.scratch / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    model, out = refused.folder / "model", refused.scratch / "stats"
    assert expected in refused("stats", model, "--corpus", path, "--layers", "1", "--out", out)


# Models


def test_missing_model(refused: Refused) -> None:
    path = refused.scratch / "no such model"
    assert refused.edit(model=path) == f"{path} does not exist: give a model folder, a GGUF file or a name on the hub"


def test_model_and_output_that_cannot_be_looked_for(refused: Refused) -> None:
    """As in a folder that may not be searched, but for root too."""
    path = refused.scratch / ("m" * 300)
    assert refused.edit(model=path).startswith(f"cannot load {path}: ")
    assert refused.edit("--out", path) == f"cannot write to {path}: File name too long; name another"
    assert refused.edit("--stats", path) == f"cannot read {path}: File name too long; expected a folder of statistics"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + bytes(100), b"text"])
def test_file_that_is_no_model(refused: Refused, content: bytes) -> None:
    path = refused.scratch / "model.gguf"
    path.write_bytes(content)
    assert str(path) in refused.edit(model=path)


@DAMAGES
def test_damaged_model(refused: Refused, damage: Damage) -> None:
    model = save_model(refused.scratch / "model")
    path = model / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert str(model) in refused.edit(model=model)


def save_t5(path: Path) -> None:
    config = AutoConfig.for_model("t5", vocab_size=400, d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(path)


def save_bert(path: Path) -> None:
    config = AutoConfig.for_model(
        "bert", vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    AutoModel.from_config(config).save_pretrained(path)


@pytest.mark.parametrize("save", [save_t5, save_bert])
def test_model_that_is_no_decoder(refused: Refused, save: Callable[[Path], None]) -> None:
    model = refused.scratch / "model"
    save(model)
    tiny_tokenizer().save_pretrained(model)
    message = refused.edit(model=model)
    assert "decoder-only" in message or "causal language model" in message


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("model.layers.1.mlp.down_proj.weight", "got NaN or Inf in model.layers.1.mlp.down_proj; load the model anew"),
        ("lm_head.weight", "expected finite logits, got NaN or Inf"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused: Refused, weight: str, expected: str, value: float) -> None:
    model = save_model(refused.scratch / "model")
    spoil(model, weight, value)
    stats = collect(model, refused.folder / "text.txt", refused.scratch / "stats", "1")
    assert expected in refused.edit("--stats", stats, model=model)


def test_weights_that_are_not_finite_below_the_keys(refused: Refused) -> None:
    model = save_model(refused.scratch / "model")
    spoil(model, "model.layers.0.mlp.up_proj.weight", float("nan"))
    message = refused(
        "stats", model, "--layers", "1", "--corpus", refused.folder / "text.txt", "--out", refused.scratch / "out"
    )
    assert message.startswith("the keys of layer 1 are not finite")


def spoil(model: Path, name: str, value: float) -> None:
    """Give a weight of a saved model one entry that is no number."""
    path = model / "model.safetensors"
    weights = load_file(path)
    weights[name][3, 2] = value
    save_file(weights, path, {"format": "pt"})


# Deltas


@DAMAGES
def test_damaged_delta(refused: Refused, damage: Damage) -> None:
    delta = Path(shutil.copytree(refused.folder / "delta", refused.scratch / "delta"))
    path = delta / "layer.1.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in evaluated(refused, delta)


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", "null", '{"format": "emmet.delta.0"}', b"\xff", None])
def test_damaged_manifest(refused: Refused, manifest: str | bytes | None) -> None:
    delta = refused.scratch / "delta"
    delta.mkdir()
    if manifest is not None:
        (delta / "emmet.json").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    assert str(delta) in evaluated(refused, delta)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *itertools.product(["edits", "config", "prefixes", "layers", "reports"], [None, 1, "text", [1], {"text": 1}]),
        *itertools.product(["base"], [1, ["text"]]),
    ],
)
def test_manifest_with_a_malformed_part(refused: Refused, key: str, value: object) -> None:
    delta = Path(shutil.copytree(refused.folder / "delta", refused.scratch / "delta"))
    manifest = json.loads((delta / "emmet.json").read_text())
    (delta / "emmet.json").write_text(json.dumps({**manifest, key: value}))
    assert str(delta) in evaluated(refused, delta)


@pytest.mark.parametrize(("key", "value"), [("module", 1), ("transposed", "no"), ("base_digest", None), ("other", 1)])
def test_manifest_with_a_malformed_layer(refused: Refused, key: str, value: object) -> None:
    delta = Path(shutil.copytree(refused.folder / "delta", refused.scratch / "delta"))
    manifest = json.loads((delta / "emmet.json").read_text())
    manifest["layers"]["1"][key] = value
    (delta / "emmet.json").write_text(json.dumps(manifest))
    assert str(delta) in evaluated(refused, delta)


@pytest.mark.parametrize("format_", ["peft", "gguf", "model"])
def test_export_of_no_delta(refused: Refused, format_: str) -> None:
    message = refused("export", refused.folder / "model", "--format", format_, "--out", refused.scratch / "out")
    assert "expected a folder that `emmet edit` wrote" in message


def test_export_for_another_model(refused: Refused) -> None:
    other = save_model(refused.scratch / "other", seed=1)
    export = ("export", refused.folder / "delta", "--out", refused.scratch / "out", "--model", other)
    assert "expected the model that the delta was made for" in refused(*export, "--format", "model")
    assert f"{other} is not the GGUF file of a model: " in refused(*export, "--format", "gguf")


def test_export_of_a_delta_that_names_no_model(refused: Refused) -> None:
    delta = Path(shutil.copytree(refused.folder / "delta", refused.scratch / "delta"))
    manifest = json.loads((delta / "emmet.json").read_text())
    (delta / "emmet.json").write_text(json.dumps({**manifest, "base": None}))
    message = refused("export", delta, "--format", "model", "--out", refused.scratch / "out")
    assert message == f"{delta} does not say what model it was made for: name it with --model"


def test_ledger(refused: Refused) -> None:
    options = ("--layers", "1", "--stats", refused.folder / "stats", "--out", refused.scratch / "delta")
    edits, ledger = refused.folder / "edits.jsonl", refused.scratch / "ledger"
    assert cli.main(list(map(str, ("edit", refused.folder / "model", edits, *options, "--ledger", ledger)))) == 0

    again = ("edit", refused.folder / "model", edits, *options, "--ledger")
    for place in ("delta", "delta/ledger", "."):
        assert "would replace one another: name folders apart" in refused(*again, refused.scratch / place)
    assert "which holds other files" in refused(*again, refused.folder)
    assert "got ridge 1.0 instead of 'auto'; make the Editor with those" in refused(*again, ledger, "--ridge", "1")
    assert "which holds edits; name another" in refused(*again, refused.folder / "delta")

    remove = ("ledger", "remove", ledger, *options[2:])
    assert "expected ids of edits in the ledger, got 7; it has 1, 2" in refused(*remove, "7")
    assert "expected a whole number of at least 1, got 'x'" in refused(*remove, "x")
    assert "cannot read the ledger" in refused("ledger", "list", refused.scratch / "none")


@pytest.mark.parametrize(
    ("option", "source", "expected"),
    [
        ("--out", None, "expected a folder of its own, got "),
        ("--stats", "stats", "the output would replace "),
        ("--model", "model", "the output would replace "),
    ],
)
def test_ledger_whose_folder_would_be_replaced_with_what_remove_reads_or_writes(
    refused: Refused, option: str, source: str | None, expected: str
) -> None:
    ledger = refused.scratch / "ledger"
    options = ("--stats", refused.folder / "stats", "--out", refused.scratch / "out")
    edit = ("edit", refused.folder / "model", refused.folder / "edits.jsonl", "--layers", "1", "--ledger", ledger)
    assert cli.main(list(map(str, (*edit, *options)))) == 0
    if source is not None:
        shutil.copytree(refused.folder / source, ledger / "inside")
    message = refused("ledger", "remove", ledger, "1", *options, option, ledger / "inside")
    assert message.startswith(f"{expected}{ledger / 'inside'}")


def test_ledger_in_the_output_of_remove(refused: Refused) -> None:
    outer = refused.scratch / "outer"
    edit = ("edit", refused.folder / "model", refused.folder / "edits.jsonl", "--layers", "1")
    options = ("--stats", refused.folder / "stats", "--out")
    assert cli.main(list(map(str, (*edit, *options, refused.scratch / "out", "--ledger", outer / "ledger")))) == 0
    shutil.copytree(refused.scratch / "out", outer, dirs_exist_ok=True)
    message = refused("ledger", "remove", outer / "ledger", "1", *options, outer)
    assert "would replace one another: name folders apart" in message


def test_export_of_a_rank_without_statistics(refused: Refused) -> None:
    export = ("export", refused.folder / "delta", "--format", "peft", "--out", refused.scratch / "out", "--rank")
    assert refused(*export, "1") == "--rank needs --stats DIR, the statistics that the edits were made with"
    assert "expected a whole number of at least 1, got '0'" in refused(
        *export, "0", "--stats", refused.folder / "stats"
    )
    assert "has no statistics" in refused(*export, "1", "--stats", refused.scratch / "none")


def test_export_with_options_that_would_do_nothing(refused: Refused) -> None:
    export = ("export", refused.folder / "delta", "--out", refused.scratch / "out", "--format")
    for format_, options in (("peft", ("--device", "cuda")), ("gguf", ("--dtype", "float64"))):
        message = f"--device and --dtype are for --format model, as {format_} needs no weights: leave them out"
        assert refused(*export, format_, *options) == message
    message = "--stats is for --rank: name a rank, or leave --stats out"
    assert refused(*export, "model", "--stats", refused.folder / "stats") == message


def test_export_for_a_model_that_cannot_be_looked_for(refused: Refused) -> None:
    export = ("export", refused.folder / "delta", "--out", refused.scratch / "out", "--format", "peft", "--model")
    assert refused(*export, "~nouser/m").startswith("cannot load ~nouser/m: Could not determine home directory")


def test_export_over_the_delta(refused: Refused) -> None:
    delta = refused.folder / "delta"
    message = refused("export", delta, "--format", "peft", "--out", delta)
    assert message == f"the output would replace {delta}, which is read: name another folder than {delta}"


@pytest.fixture
def narrow_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ranks that a tiny model's updates can exceed."""
    monkeypatch.setattr("emmet.export.peft._RANKS", (1, 4))


@pytest.mark.usefixtures("narrow_adapters")
def test_edit_for_a_format_that_cannot_hold_it(refused: Refused) -> None:
    """Refused before the edits are made, which takes long."""
    edits = write_lines(
        refused.scratch / "edits.jsonl",
        [{"prompt": "{} is", "subject": f"Town {number}", "target": "big"} for number in range(5)],
    )
    model, out = refused.folder / "model", refused.scratch / "out"
    message = refused("edit", model, edits, "--out", out, "--format", "peft")
    assert re.search(r"expected an update of rank 4 or less, .* got 5; compress it", message)
    message = refused("edit", model, edits, "--out", out, "--format", "gguf")
    assert f"{model} is not the GGUF file of a model: " in message


@pytest.mark.usefixtures("narrow_adapters")
def test_edit_for_an_adapter_that_cannot_hold_it_with_those_of_the_ledger(refused: Refused) -> None:
    options = ("--layers", "1", "--stats", refused.folder / "stats", "--out", refused.scratch / "delta")
    edit = ("edit", refused.folder / "model", "--ledger", refused.scratch / "ledger", *options)
    assert cli.main(list(map(str, (*edit, refused.folder / "edits.jsonl")))) == 0

    towns = [{"prompt": "{} is", "subject": f"Town {number}", "target": "big"} for number in range(3)]
    edits = write_lines(refused.scratch / "edits.jsonl", [*towns, {**EDITS[0], "target": "German"}])  # replaces one
    message = refused(*edit, edits, "--format", "peft")
    assert re.search(r"expected an update of rank 4 or less, .* got 5; compress it", message)


def test_delta_of_another_model(refused: Refused) -> None:
    other = save_model(refused.scratch / "other", seed=1)
    message = evaluated(refused, refused.folder / "delta", model=other)
    assert message.startswith("expected the model that the delta was made for, got another weight in model.layers.1.")


def test_delta_of_another_dtype(refused: Refused) -> None:
    message = evaluated(refused, refused.folder / "delta", "--dtype", "bfloat16")
    assert message.endswith("load that model, without edits and in the same dtype")


def evaluated(refused: Refused, delta: Path, *options: str, model: Path | None = None) -> str:
    """The error message of `emmet eval` with a delta."""
    sources = (model or refused.folder / "model", refused.folder / "edits.jsonl")
    return refused("eval", *sources, "--delta", delta, "--report", refused.scratch / "report", *options)


# Evaluations


def evaluated_records(refused: Refused, records: str, *options: str | Path) -> str:
    """The error message of `emmet eval` with a file of these records."""
    path = refused.scratch / "bad.jsonl"
    path.write_text(records)
    return refused("eval", refused.folder / "model", path, "--report", refused.scratch / "report", *options)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"target": ""}, "line 1: target must be a text that is not blank, got ''"),
        ({"prompt": None}, "line 1: prompt must be a text that is not blank, got None"),
        ({"paraphrases": [" "]}, "line 1: each of paraphrases must be a text that is not blank, got ' '"),
        ({"neighbours": [{"prompt": "Rome is in"}]}, "line 1: missing key 'answer'"),
        ({"neighbours": [{"prompt": "Rome is in", "answer": ""}]}, "line 1: answer must be a text that is not blank"),
        ({"answer_before": ""}, "line 1: answer_before must be a text that is not blank, got ''"),
    ],
)
def test_records_with_missing_or_empty_fields(refused: Refused, record: Mapping[str, Any], message: str) -> None:
    assert message in evaluated_records(refused, json.dumps({**MOTHER_TONGUE, **record}))


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_no_records(refused: Refused, text: str) -> None:
    assert "bad.jsonl holds no edits" in evaluated_records(refused, text)


def test_drift_without_edits(refused: Refused) -> None:
    message = evaluated_records(refused, json.dumps(MOTHER_TONGUE), "--drift", refused.folder / "text.txt")
    assert message == "--drift compares with the unedited model: name the edits with --delta"


def test_drift_on_a_missing_text(refused: Refused) -> None:
    missing = refused.scratch / "missing.txt"
    assert evaluated(refused, refused.folder / "delta", "--drift", str(missing)).startswith(f"cannot read {missing} (")


def test_texts_of_records_without_generation_prompts(refused: Refused) -> None:
    message = evaluated_records(refused, json.dumps(MOTHER_TONGUE), "--texts")
    assert message.startswith("expected records with generation prompts, got none")


def test_references_that_are_none(refused: Refused) -> None:
    message = evaluated_records(refused, json.dumps(MOTHER_TONGUE), "--references", refused.folder / "text.txt")
    assert "text.txt is not like attribute_snippets.json" in message


def test_unknown_task(refused: Refused) -> None:
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    message = evaluated_records(refused, json.dumps(MOTHER_TONGUE), "--tasks", "geografy")
    assert message.startswith("cannot load the task geografy: ")


# Outputs


@pytest.mark.parametrize("format_", ["delta", "model", "peft"])
def test_output_folder_that_holds_other_files(refused: Refused, format_: str) -> None:
    out = refused.scratch / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    message = refused.edit("--out", out, "--format", format_)
    assert message == f"expected a new or empty folder for the output, got {out}, which holds other files; name another"


@pytest.mark.parametrize(("command", "option"), [("stats", "--out"), ("edit", "--out"), ("eval", "--report")])
def test_output_folder_that_cannot_be(refused: Refused, command: str, option: str) -> None:
    model, edits, text = (refused.folder / name for name in ("model", "edits.jsonl", "text.txt"))
    arguments: dict[str, tuple[str | Path, ...]] = {
        "stats": ("--corpus", text, "--layers", "1"),
        "edit": (edits,),
        "eval": (edits,),
    }
    message = refused(command, model, *arguments[command], option, text / "out")
    assert message == f"cannot write to {text / 'out'}, as {text} is not a folder that you may write to; name another"


@pytest.mark.parametrize(("command", "option"), [("stats", "--out"), ("eval", "--report"), ("edit", "--values")])
@pytest.mark.parametrize("kind", ["delta", "ledger", "sweep"])
def test_results_into_a_folder_that_emmet_wrote(refused: Refused, command: str, option: str, kind: str) -> None:
    place = refused.scratch / kind
    place.mkdir()
    (place / "emmet.json").write_text(f'{{"format": "emmet.{kind}.1"}}')
    message = results_into(refused, command, option, place)
    what = "edits" if kind == "delta" else f"a {kind}"
    assert message == f"expected a folder of its own, got {place}, which holds {what}; name another"


@pytest.mark.parametrize(
    ("command", "option"),
    [("stats", "--out"), ("edit", "--out"), ("edit", "--values"), ("eval", "--report"), ("sweep", "--out")],
)
@pytest.mark.parametrize(("kind", "what"), [("delta", "edits"), ("ledger", "a ledger")])
def test_results_below_a_folder_that_emmet_replaces(
    refused: Refused, command: str, option: str, kind: str, what: str
) -> None:
    place = refused.scratch / kind
    place.mkdir()
    (place / "emmet.json").write_text(f'{{"format": "emmet.{kind}.1"}}')
    message = results_into(refused, command, option, place / "new" / "results")
    results = place / "new" / "results"
    assert message == (
        f"expected a folder of its own, got {results}, which goes when emmet replaces {place} with {what}; name another"
    )


def results_into(refused: Refused, command: str, option: str, place: Path) -> str:
    """The error message of a command that is to write results there."""
    edits, layers = refused.folder / "edits.jsonl", ("--layers", "1")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "stats": ("--corpus", refused.folder / "text.txt", *layers),
        "edit": (edits, "--stats", refused.folder / "stats", *layers, "--out", refused.folder / "delta"),
        "eval": (edits,),
        "sweep": (edits, "--stats", refused.folder / "stats", *layers, "--batch-sizes", "1"),
    }
    return refused(command, refused.folder / "model", *arguments[command], option, place)


def test_output_folder_that_is_the_input(refused: Refused) -> None:
    model = save_model(refused.scratch / "model")
    (model / "emmet.json").write_text('{"format": "emmet.model.1"}')  # as if it had been written by `emmet edit`
    message = refused.edit("--out", model, model=model)
    assert message == f"the output would replace {model}, which is read: name another folder than {model}"


# Weights in memory


@pytest.fixture(scope="module")
def editor(folder: Path) -> Editor:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    return Editor(model, tokenizer, config=EditConfig(layers=[1, 2], ridge="auto"), statistics=folder / "stats")


GOOD = Edit("The capital of {} is", "France", "Berlin")


@pytest.mark.parametrize(
    "bad",
    [
        [GOOD, Edit(GOOD.prompt, GOOD.subject, "Rome")],
        [GOOD, GOOD],
        [GOOD, Edit("The capital of {} is", "France " * 300, "Berlin")],
        [],
    ],
)
def test_bad_edits_change_no_weight(editor: Editor, bad: list[Edit]) -> None:
    before = {name: tensor.clone() for name, tensor in editor.arch.model.state_dict().items()}
    with pytest.raises(EditError):
        editor.edit(bad)
    assert_same_bits(editor, before)


def test_overflow_in_a_later_layer_changes_no_weight(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer has its update already when the residuals of the second turn out not to be finite."""
    before = {name: tensor.clone() for name, tensor in editor.arch.model.state_dict().items()}
    solve = emmet_editor.solve
    calls: list[int] = []

    def overflowing(
        preservation: Preservation, keys: Tensor, residuals: Tensor, ridge: float | Literal["auto"]
    ) -> Update:
        calls.append(1)
        return solve(preservation, keys, residuals * (float("inf") if len(calls) == 2 else 1), ridge)

    monkeypatch.setattr(emmet_editor, "solve", overflowing)
    with pytest.raises(NonFiniteError):
        editor.edit([GOOD])
    assert len(calls) == 2
    assert_same_bits(editor, before)


def assert_same_bits(editor: Editor, before: Mapping[str, Tensor]) -> None:
    for name, tensor in editor.arch.model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name


def test_output_folder_that_holds_the_values(refused: Refused) -> None:
    values = refused.scratch / "out" / "values"
    message = refused.edit("--out", refused.scratch / "out", "--values", values)
    assert message == f"the output would replace {values}, which is read: name another folder than {values.parent}"
