"""Processes that are killed, or get no more disk or memory: nothing that was there is lost, and a rerun makes it good.

Run by `pytest -m faults`. Each trial is a fork of this process, which has imported all that the command line needs, so
that a random moment falls into its work and not into its imports. No trial runs here, so that no thread is forked.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

import pytest
import torch

import emmet
from emmet import cli, editor
from emmet.loading import load
from emmet.storage import read_tensors
from emmet.sweep import task as sweep_task
from tiny import tiny_model, tiny_tokenizer
from workspace import EDITS, TEXT, contents, save_model, write_lines

pytestmark = pytest.mark.faults

KILLS = 50
NOBODY = 65534

Task = Callable[[Path], object]
Record = Callable[[str], None]
Parts = dict[str, dict[str, bytes | None]]


class Ended(NamedTuple):
    """How a process ended: its exit code, −9 if it was killed, and what it wrote to its standard streams."""

    code: int
    text: str


class Fork:
    """A fork of this process that runs a task."""

    def __init__(self, task: Callable[[], object]) -> None:
        self._out, out = os.pipe()
        self._id = os.fork()
        if self._id == 0:
            _run_and_exit(task, out)
        os.close(out)

    def kill(self, seconds: float) -> Ended:
        time.sleep(seconds)
        os.kill(self._id, signal.SIGKILL)
        return self.wait()

    def wait(self) -> Ended:
        with os.fdopen(self._out, encoding="utf-8") as stream:
            text = stream.read()
        _, status = os.waitpid(self._id, 0)
        return Ended(os.waitstatus_to_exitcode(status), text)


def _run_and_exit(task: Callable[[], object], out: int) -> NoReturn:
    code = 1
    try:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = os.fdopen(out, "w", encoding="utf-8")
        editor._now = lambda: "2000-01-01T00:00:00+00:00"
        code = int(task() or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()
        os._exit(code)


def done(task: Callable[[], object]) -> None:
    """Run a task in a fork; it must end well."""
    ended = Fork(task).wait()
    assert ended.code == 0, ended.text


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Count outcomes, and print how many there were of each: what docs/reliability.md tells."""
    counts: Counter[str] = Counter()
    yield lambda outcome: counts.update([outcome])
    with Path(os.environ.get("EMMET_FAULTS_LOG", os.devnull)).open("a") as log:
        log.write(f"{request.node.name}: {dict(counts)}\n")


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    """A folder with a model, edits, statistics, a delta, a ledger of one edit and a sweep: what trials start from."""
    with TemporaryDirectory(prefix="emmet-faults-") as name:
        folder = Path(name) / "start"
        save_model(folder / "model")
        write_lines(folder / "first.jsonl", EDITS[:1])
        write_lines(folder / "edits.jsonl", EDITS[1:])
        write_lines(folder / "records.jsonl", [*EDITS, {**EDITS[1], "subject": "Germany"}])
        (folder / "text.txt").write_text(TEXT)
        done(lambda: command(folder, "stats model --corpus text.txt --layers 1 --tokens 2000 --out stats"))
        first = "edit model first.jsonl --layers 1 --stats stats --out delta --ledger ledger --values values"
        done(lambda: command(folder, first))
        other = "edit model edits.jsonl --layers 1 --stats stats --out other --values other-values"
        done(lambda: command(folder, other))
        done(lambda: command(folder, "export other --model model --format model --out merged"))
        done(lambda: command(folder, f"{SWEEP} --batch-sizes 1 --values other-values"))
        yield folder


@pytest.fixture
def trials(pristine: Path) -> Iterator[Path]:
    folder = pristine.parent / "trial"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fresh(pristine: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)
    return folder


def command(folder: Path, line: str) -> int:
    os.chdir(folder)
    return cli.main([*line.split(), "--quiet"])


def collect(folder: Path) -> None:
    """As `emmet stats` does, with a checkpoint after each batch."""
    os.chdir(folder)
    model, tokenizer = load("model")
    emmet.collect_statistics(
        model,
        tokenizer,
        "text.txt",
        layers=[0, 2],
        tokens=400,
        sequence_length=32,
        batch_tokens=64,
        out="collected",
        checkpoint_seconds=0,
    )


def stats(folder: Path) -> int:
    return command(folder, "stats model --corpus text.txt --layers 0,2 --tokens 400 --out collected")


def edit(folder: Path) -> int:
    """One more edit into the ledger and the cache of values; the delta is replaced."""
    return command(
        folder, "edit model edits.jsonl --layers 1 --stats stats --out delta --ledger ledger --values values"
    )


def save(folder: Path) -> int:
    """A whole model, in the place of an older one."""
    return command(folder, "export delta --model model --format model --out merged")


SWEEP = "sweep model records.jsonl --layers 1 --stats stats --methods emmet:0,memit:0.5 --out sweep"


def sweep(folder: Path) -> int:
    """More combinations for a sweep, whose outcomes are written after each batch."""
    sweep_task.RECORDS_A_WRITE = 1
    return command(folder, f"{SWEEP} --batch-sizes 1,2,3 --values values")


TASKS: list[Task] = [collect, edit, save, sweep]


def parts(folder: Path) -> Parts:
    """What a folder shows under final names, by the units that are replaced as a whole: folders, or single files.

    A checkpoint need only be readable: the last may stay when all is written.
    """
    found: Parts = {}
    for name, content in contents(folder).items():
        path = Path(name)
        if path.name.startswith("partial."):
            read_tensors(folder / path)
        elif content is not None and not any(part.startswith(".") or part.endswith(".tmp") for part in path.parts):
            unit = path.parts[0] if path.parts[0] in ("delta", "ledger", "merged") else name
            found.setdefault(unit, {})[name] = content
    return found


def outcome_of(task: Task, pristine: Path, folder: Path, expected: Parts) -> str:
    """Check what a killed run left, run again, and check that nothing tells that from an undisturbed run."""
    before, after = parts(pristine), parts(folder)
    for unit in before.keys() | after.keys():
        whole = after.get(unit) in (before.get(unit), expected.get(unit))
        assert whole or _is_begun(unit, after, expected), f"{unit} is neither the old nor the new one"
    if after == expected:
        return "was done"
    done(lambda: task(folder))
    assert parts(folder) == expected
    return "nothing yet, rerun" if after == before else "a part, rerun"


def _is_begun(unit: str, after: Parts, expected: Parts) -> bool:
    """Whether a file has the first outcomes of a run of a sweep."""
    if not unit.startswith("sweep/runs/"):
        return False
    found, whole = (json.loads(parts[unit][unit] or b"") for parts in (after, expected))
    outcomes = found["batches"]
    return found["run"] == whole["run"] and outcomes == whole["batches"][: len(outcomes)]


def undisturbed(task: Task, pristine: Path, folder: Path) -> tuple[Parts, float]:
    """What a task leaves when nothing happens, and how many seconds it takes."""
    fresh(pristine, folder)
    start = time.perf_counter()
    done(lambda: task(folder))
    return parts(folder), time.perf_counter() - start


@pytest.mark.parametrize("task", TASKS)
def test_kill_at_random_moments(task: Task, pristine: Path, trials: Path, record: Record) -> None:
    expected, seconds = undisturbed(task, pristine, trials)
    moments = random.Random(0)
    for _ in range(KILLS):
        folder = fresh(pristine, trials)
        Fork(lambda: task(folder)).kill(moments.uniform(0, seconds))  # noqa: B023 (runs at once)
        record(outcome_of(task, pristine, folder, expected))


@pytest.mark.parametrize("task", TASKS)
def test_kill_before_each_change_of_the_file_system(task: Task, pristine: Path, trials: Path, record: Record) -> None:
    expected, _ = undisturbed(task, pristine, trials)
    for step in itertools.count(1):
        folder = fresh(pristine, trials)
        if Fork(lambda: _kill_at_change(step, folder) or task(folder)).wait().code == 0:  # noqa: B023
            break
        record(outcome_of(task, pristine, folder, expected))
    assert step > 5


def _kill_at_change(step: int, folder: Path) -> None:
    """Kill this process before it opens for writing, makes, renames or removes the `step`-th file in a folder."""
    left = step

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if _changes(event, args, str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _changes(event: str, args: tuple[object, ...], folder: str) -> bool:
    if event == "ctypes.dlsym":  # how folders are exchanged
        return args[1] == "renameat2"
    if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return False
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return False
    return isinstance(args[0], str | Path) and os.path.abspath(args[0]).startswith(folder)  # noqa: PTH100 (no object)


@pytest.mark.parametrize("task", TASKS)
def test_a_full_disk(task: Task, pristine: Path, trials: Path, record: Record) -> None:
    expected, _ = undisturbed(task, pristine, trials)
    largest = max(len(content or b"") for unit in expected.values() for content in unit.values())
    for size in [0, 1, 100, 1000, 5000, *range(10_000, largest, max(10_000, largest // 10))]:
        folder = fresh(pristine, trials)
        code, text = Fork(lambda: _limit(resource.RLIMIT_FSIZE, size) or task(folder)).wait()  # noqa: B023
        assert code != 0 or parts(folder) == expected
        if code != 0:
            assert re.search(r"cannot write \S+: File too large; make room, or name another place$", text), text
            assert "Traceback" not in text
            assert not [name for name in contents(folder) if ".tmp" in name]
        record(outcome_of(task, pristine, folder, expected))


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


@pytest.mark.parametrize(
    ("task", "closed"),
    [
        *((edit, "delta"), (edit, "ledger"), (edit, "values"), (edit, ".")),
        *((save, "merged"), (save, "."), (sweep, "sweep"), (sweep, "values"), (stats, ".")),
    ],
)
def test_no_permission(task: Task, closed: str, pristine: Path, trials: Path, record: Record) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become a user without permissions")
    expected, _ = undisturbed(task, pristine, trials)
    folder = fresh(pristine, trials)
    _give(folder, but=folder / closed)  # and what is imported late is imported before this user cannot read it
    shutil.copytree(pristine, pristine.parent / "warm", dirs_exist_ok=True)
    code, text = Fork(lambda: task(pristine.parent / "warm") or os.setuid(NOBODY) or task(folder)).wait()
    assert code == 2, text
    assert re.match(r"emmet: error: cannot write to .*; name another$", text.splitlines()[-1]), text
    assert parts(folder) == parts(pristine)
    record(outcome_of(task, pristine, folder, expected))


def _give(folder: Path, but: Path) -> None:
    """Give a folder to nobody, but for one part of it."""
    folder.parent.chmod(0o755)
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            path.chmod(0o644)
        if path != but and but != folder:
            os.chown(path, NOBODY, NOBODY)


def test_a_corrupt_value_is_computed_again(pristine: Path, trials: Path, record: Record) -> None:
    expected, _ = undisturbed(edit, pristine, trials)
    (name,) = expected.keys() - parts(pristine).keys()
    where = random.Random(0)
    for trial in range(20):
        folder = fresh(pristine, trials)
        content = bytearray(expected[name][name] or b"")
        place = where.randrange(len(content))
        content[place] ^= 1 << where.randrange(8)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if trial % 2 else content[:place])
        done(lambda: edit(folder))  # noqa: B023
        assert parts(folder) == expected
        record("computed again")


def test_two_processes_with_one_cache(pristine: Path, trials: Path, record: Record) -> None:
    expected, _ = undisturbed(edit, pristine, trials)
    for _ in range(10):
        folder = fresh(pristine, trials)
        both = [Fork(lambda number=number: _edit_beside(folder, number)) for number in (1, 2)]  # noqa: B023
        assert [ended.code for ended in [fork.wait() for fork in both]] == [0, 0]
        after = parts(folder)
        for unit in expected.keys() - {"delta", "ledger"}:
            assert after[unit] == expected[unit]
        for number in (1, 2):
            for unit in ("delta", "ledger"):
                names = {name.replace(unit, f"{unit}{number}", 1): content for name, content in expected[unit].items()}
                assert {
                    name: content for part in after.values() for name, content in part.items() if name in names
                } == names
        record("same bytes")


def _edit_beside(folder: Path, number: int) -> int:
    shutil.copytree(folder / "ledger", folder / f"ledger{number}")
    options = f"--out delta{number} --ledger ledger{number} --values values"
    return command(folder, f"edit model edits.jsonl --layers 1 --stats stats {options}")


def test_no_more_memory(record: Record) -> None:
    """An allocation that fails leaves the weights as they were, and the editor as good as new."""
    for megabytes in (0, 50, 100, 150, 200, 300, 400, 600):
        code, text = Fork(lambda: _edit_without_memory(megabytes)).wait()  # noqa: B023
        assert code in (_REFUSED, _EDITED), text
        record("weights untouched, then edited" if code == _REFUSED else "edited")


_REFUSED, _EDITED = 10, 11


def _address_space() -> int:
    """Bytes in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _edit_without_memory(megabytes: int) -> int:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), intermediate_size=5000)
    statistics = emmet.collect_statistics(model, tokenizer, "self", layers=[1], tokens=200)
    config = emmet.EditConfig(layers=[1], prefixes=(), steps=2)
    edits = [emmet.Edit(record["prompt"], record["subject"], record["target"]) for record in EDITS]
    editor = emmet.Editor(model, tokenizer, config=config, statistics=statistics)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _limit(resource.RLIMIT_AS, _address_space() + megabytes * 2**20)
    try:
        editor.edit(edits)
        refused = False
    except (RuntimeError, MemoryError):  # of torch, and of emmet
        refused = True
    finally:
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    if not refused:
        return _EDITED
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert editor.list() == ()
    assert editor.edit(edits).diagnostics[0].diagnostics.constraint_residual < 1e-6
    return _REFUSED


def test_no_more_memory_for_a_solve(record: Record) -> None:
    """The metric is as good as before."""
    for megabytes in (0, 30, 60, 100, 150, 250, 400, 600):
        code, text = Fork(lambda: _solve_without_memory(megabytes)).wait()  # noqa: B023
        assert code in (_REFUSED, _EDITED), text
        record("an error, then solved" if code == _REFUSED else "solved")


def _solve_without_memory(megabytes: int) -> int:
    generator = torch.Generator().manual_seed(0)
    keys, residuals = (torch.randn(1500, width, generator=generator, dtype=torch.float64) for width in (4000, 2000))
    metric = emmet.Preservation.from_second_moment(torch.eye(4000, dtype=torch.float64))
    expected = emmet.solve(metric, keys, residuals).dense()
    _limit(resource.RLIMIT_AS, _address_space() + megabytes * 2**20)
    try:
        found = emmet.solve(metric, keys, residuals).dense()
        refused = False
    except MemoryError:
        refused = True
    finally:
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    if refused:
        found = emmet.solve(metric, keys, residuals).dense()
    assert torch.equal(found, expected)
    return _REFUSED if refused else _EDITED


def test_no_more_memory_for_keys(record: Record) -> None:
    """A moment never counts keys that it lacks, or holds some that it does not count."""
    for megabytes in (0, 30, 100, 150, 200, 300):
        code, text = Fork(lambda: _add_without_memory(megabytes)).wait()  # noqa: B023
        assert code in _ADDING, text
        record(_ADDING[code])


_ADDING = {20: "added", 21: "nothing added", 22: "lost, and says so"}


def _add_without_memory(megabytes: int) -> int:
    keys = torch.randn(5000, 8000, generator=torch.Generator().manual_seed(0)).bfloat16()
    moment = emmet.Covariance(8000)
    moment.add(keys[:100])
    expected = moment.sum()
    _limit(resource.RLIMIT_AS, _address_space() + megabytes * 2**20)
    try:
        moment.add(keys)
    except MemoryError:
        pass
    finally:
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    try:
        found = moment.sum()
    except emmet.EmmetError as error:
        return 22 if "with some of the keys of a failed add(); begin anew" in str(error) else 1
    added = moment.count() == 5100
    assert moment.count() == (5100 if added else 100)
    if added:
        whole = emmet.Covariance(8000)
        whole.add(keys[:100])
        whole.add(keys)
        expected = whole.sum()
    assert torch.equal(found, expected)
    return 20 if added else 21
