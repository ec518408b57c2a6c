"""Downstream tasks, run by lm-eval (EleutherAI's lm-evaluation-harness) on a model that is in memory."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError
from ..hooks import frozen
from ..progress import Progress, silent
from ..storage import first_line

_BATCH_SIZE = 16

TaskScores = Mapping[str, Mapping[str, "TaskScore"]]
"""What a model comes to, by task and by metric as lm-eval calls them."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A metric of a task, with its standard error, each None where lm-eval gives no finite one."""

    value: float | None
    standard_error: float | None


class Tasks:
    """Tasks of lm-eval: names of its own tasks and groups, or YAML files that define tasks.

    Raises ConfigError if lm-eval is not installed, or a task is unknown, malformed or without its data.
    """

    def __init__(self, names: Sequence[str]) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            message = "downstream tasks need the package lm-eval: pip install 'emmet-edit[downstream]'"
            raise ConfigError(message) from error
        self._names = list(names)
        # To look through its own tasks takes seconds.
        self._manager = TaskManager(include_defaults=not all(Path(name).is_file() for name in names))
        for name in names:
            self._check(name)

    def _check(self, name: str) -> None:
        try:
            with redirect_stderr(io.StringIO()):  # progress bars that have no switch
                self._manager.load([name])
        except Exception as error:  # whatever lm-eval, datasets, the network and the file formats raise
            message = f"cannot load the task {name}: {first_line(error)}; give a task of lm-eval or its YAML file"
            raise ConfigError(message) from error

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress = silent
    ) -> dict[str, dict[str, TaskScore]]:
        """Run the tasks on a model as it is; its weights, its mode and torch's random state are not changed."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        found: dict[str, dict[str, TaskScore]] = {}
        for done, name in enumerate(self._names):
            progress("tasks", done, len(self._names))
            with frozen(model), redirect_stderr(io.StringIO()):
                wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=_BATCH_SIZE)
                output = simple_evaluate(
                    wrapped,
                    tasks=[name],
                    task_manager=self._manager,
                    log_samples=False,
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                )
            found |= {task: _scores(metrics) for task, metrics in output["results"].items()}
        progress("tasks", len(self._names), len(self._names))
        return found


def _scores(metrics: Mapping[str, Any]) -> dict[str, TaskScore]:
    """From lm-eval's flat "acc,none" and "acc_stderr,none", where "none" names the filter of the answers."""
    scores = {}
    for key, value in metrics.items():
        metric, _, answer_filter = key.partition(",")
        if answer_filter and not metric.endswith("_stderr"):
            error = metrics.get(f"{metric}_stderr,{answer_filter}")
            name = metric if answer_filter == "none" else key
            scores[name] = TaskScore(_finite(value), _finite(error))
    return scores


def _finite(figure: Any) -> float | None:
    """lm-eval has "N/A" for what it does not know, and NaN or infinity where a model overflows."""
    return float(figure) if isinstance(figure, (int, float)) and math.isfinite(figure) else None
