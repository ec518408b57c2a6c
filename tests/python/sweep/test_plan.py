"""Which combinations a plan makes, into which batches their records go, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from emmet import ConfigError, Edit, EditConfig
from emmet.config import parse_layers
from emmet.edits import Record
from emmet.sweep import Plan
from emmet.sweep.plan import Batch, check_batch_sizes, layers_text, ridge_text, without_repetitions

LLAMA = LlamaConfig(num_hidden_layers=12)


def combinations(plan: Plan) -> list[tuple[str, tuple[int, ...], object, int]]:
    runs = plan.runs(LLAMA)
    return [(run.config.method, run.config.layers, run.config.ridge, run.batch_size) for run in runs]


def test_every_combination_is_made_once() -> None:
    plan = Plan(methods=["rome", "emmet", "memit:7"], batch_sizes=[4, 1], layers=[[3], [2, 1]], ridges=[0, 0.5])
    solvers = [("rome", 0), ("emmet", 0), ("emmet", 0.5), ("memit", 7)]
    assert combinations(plan) == [
        (method, layers, ridge, size) for layers in [(3,), (1, 2)] for method, ridge in solvers for size in (1, 4)
    ]


def test_weights_of_earlier_edits_are_tried_where_there_are_any() -> None:
    plan = Plan(methods=["emmet:0"], batch_sizes=[2, 4], layers=[[3]], sequential=True, absorb=[0, 0.5])
    runs = plan.runs(LLAMA)
    assert [(run.config.absorb, run.batch_size) for run in runs] == [(0, 2), (0, 4), (0.5, 2), (0.5, 4)]
    assert len({run.name for run in runs}) == 4


def test_settings_and_presets_decide_what_is_left_out() -> None:
    plan = Plan(methods=["emmet", "memit"], batch_sizes=[2], config=EditConfig(layers=[5], steps=3))
    assert combinations(plan) == [("emmet", (5,), "auto", 2), ("memit", (5,), 1000, 2)]
    assert {run.config.steps for run in plan.runs(LLAMA)} == {3}
    by_depth = Plan(methods=["emmet", "memit"], batch_sizes=[2])
    assert [layers for _, layers, _, _ in combinations(by_depth)] == [(3,), (0, 1, 2, 3)]


def test_names_of_runs_differ_and_are_file_names() -> None:
    plan = Plan(methods=["rome", "emmet"], batch_sizes=[1, 16], layers=[[3], [0, 1, 5]], ridges=[0, 1e-12, "auto"])
    names = [run.name for run in plan.runs(LLAMA)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9.,-]+", name) for name in names)
    assert names[-1] == "emmet-layers-0-1,5-ridge-auto-batch-16"
    (run,) = Plan(methods=["rome"], batch_sizes=[4], layers=[[1]], sequential=True).runs(LLAMA)
    assert run.name == "rome-layers-1-ridge-0-batch-4-sequential-absorb-1"


@pytest.mark.parametrize("layers", [(3,), (0, 1), (0, 2, 3, 4, 7), (1, 3, 5)])
def test_layers_are_written_as_they_are_read(layers: tuple[int, ...]) -> None:
    assert parse_layers(layers_text(layers)) == layers


@pytest.mark.parametrize("ridge", [0.0, 0.1, 15000.0, 1e-12, 1.0000000001, 2e20])
def test_ridges_are_written_exactly(ridge: float) -> None:
    assert float(ridge_text(ridge)) == ridge


def test_ridges_are_written_shortly() -> None:
    assert [ridge_text(ridge) for ridge in (0.0, 15000.0, "auto")] == ["0", "15000", "auto"]


@pytest.mark.parametrize(
    ("records", "scored", "expected"),
    [
        (10, None, [Batch(0, 4, 4), Batch(4, 8, 4)]),  # two records are left
        (10, 5, [Batch(0, 4, 4), Batch(4, 8, 1)]),
        (10, 100, [Batch(0, 4, 4), Batch(4, 8, 4)]),
        (4, 1, [Batch(0, 4, 1)]),
    ],
)
def test_batches_are_whole_and_scored_as_far_as_asked(records: int, scored: int | None, expected: list[Batch]) -> None:
    (run,) = Plan(methods=["emmet"], batch_sizes=[4], layers=[[1]]).runs(LLAMA)
    assert run.batches(records, scored) == expected


@pytest.mark.parametrize(("scored", "expected"), [(None, Batch(0, 8, 8)), (3, Batch(0, 4, 3)), (5, Batch(0, 8, 5))])
def test_a_sequence_is_scored_once(scored: int | None, expected: Batch) -> None:
    (run,) = Plan(methods=["emmet"], batch_sizes=[4], layers=[[1]], sequential=True).runs(LLAMA)
    assert run.batches(10, scored) == [expected]


def test_which_runs_share_values() -> None:
    def shared(model_config: Any, **settings: Any) -> list[Any]:
        plan = Plan(methods=["rome", "emmet:0", "memit:5"], layers=[[1]], **settings)
        return [run.shared_config if run.shares_values else None for run in plan.runs(model_config)]

    assert len(set(shared(LLAMA, batch_sizes=[1]))) == 1
    rome, emmet, memit = shared(LLAMA, batch_sizes=[2])
    assert rome is None  # it computes values in the model that its first edit left
    assert emmet is not None
    assert emmet == memit
    assert shared(LLAMA, batch_sizes=[2], sequential=True) == [None] * 3
    # GPT-2 XL has presets, by which ROME clamps values otherwise than MEMIT.
    xl = GPT2Config(n_layer=48, n_embd=1600, n_head=25)
    rome, emmet, memit = shared(xl, batch_sizes=[1])
    assert rome != emmet


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": []}, "methods must be a sequence of at least one, got []"),
        ({"methods": "emmet"}, "methods must be a sequence of at least one, got 'emmet'"),
        ({"methods": ["emet"]}, "unknown method 'emet', did you mean 'emmet'?"),
        ({"methods": ["emmet", "emmet"]}, "methods must differ, got emmet more than once: keep one"),
        ({"methods": ["memit:lots"]}, 'expected a method as in "memit" or "memit:15000", got \'memit:lots\''),
        ({"methods": ["memit"], "ridges": [1, 0]}, "the ridge of memit must be a number above 0"),
        ({"methods": ["rome:1"]}, "the ridge of rome must be 0"),
        ({"ridges": [1, 1.0]}, "ridges must differ, got 1 more than once: keep one"),
        ({"ridges": [-1]}, "the ridge of emmet must be a number of at least 0"),
        ({"batch_sizes": [4, 4]}, "batch_sizes must differ, got 4 more than once"),
        ({"batch_sizes": [0]}, "a batch size must be a whole number of at least 1, got 0"),
        ({"batch_sizes": [True]}, "a batch size must be a whole number of at least 1, got True"),
        ({"scored": 0}, "scored must be a whole number of at least 1, got 0"),
        ({"drift_tokens": 0}, "drift_tokens must be a whole number of at least 1, got 0"),
        ({"absorb": [0, 1]}, "absorb is for sequential batches, got [0, 1] without: others know no earlier edits"),
        ({"absorb": [-1], "sequential": True}, "absorb must be a number of at least 0"),
        ({"layers": [[1], [1]]}, "layers must differ, got (1,) more than once"),
        ({"layers": [[]]}, "layers must name at least one layer"),
    ],
)
def test_plans_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Plan(**settings)


def test_a_layer_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match="layer 12 does not exist: choose layers from 0 to 11"):
        Plan(layers=[[3], [12]]).runs(LLAMA)


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": ["emmet:auto", "emmet"], "layers": [[1]]},
        {"methods": ["emmet:5", "emmet"], "ridges": [5.0, "auto"], "layers": [[1]]},
        {"methods": ["emmet"], "layers": [[1, 2], [2, 1]]},
    ],
)
def test_combinations_that_turn_out_the_same(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"combinations must differ, got emmet-layers-.* more than once"):
        Plan(batch_sizes=[1], **settings).runs(LLAMA)


def test_more_edits_at_once_than_records() -> None:
    check_batch_sizes([1, 8], 8)
    with pytest.raises(ConfigError, match=r"a batch of 1,024 needs as many records .*, got 1,023"):
        check_batch_sizes([8, 1024], 1023)


def test_of_repeated_prompts_the_first_is_kept() -> None:
    edits = [Edit("{} is", "A", "x"), Edit("{} is", "B", "x"), Edit("{} is", "A", "y"), Edit("{} was", "A", "x")]
    records = [Record(edit, "emmet", None, (), ()) for edit in edits]
    assert without_repetitions(records) == [records[0], records[1], records[3]]
