"""What the processes of `test_distributed` run: python ranks.py FOLDER STEP:PORT …

Each step prints a line of JSON: its exit code, and how many batches of text and of edits this process computed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from emmet import EmmetError, cli, statistics, values
from emmet.distributed import World, joined
from emmet.progress import Progress, silent
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS = {"batch_size": 1, "steps": 3, "prefix_count": 2}  # two edits are two batches


def main() -> None:
    folder = Path(sys.argv[1])
    added, minimised = counting(statistics._Run, "add"), counting(values, "_minimise")
    for step in sys.argv[2:]:
        name, port = step.split(":")
        os.environ["MASTER_PORT"] = port
        added.clear(), minimised.clear()
        code = edit(folder, name) if name.startswith("edit") else collect(folder, name)
        print(json.dumps({"step": name, "code": code, "added": len(added), "minimised": len(minimised)}), flush=True)


def edit(folder: Path, name: str) -> int:
    """`emmet edit` of no file, or of two edits: by all processes, again with their values, or by the first alone.

    As "edit_killed" the second process is killed when it is about to find a value.
    """
    alone, second = name == "edit_alone", os.environ["RANK"] != "0"
    if alone and second:
        return 0
    os.environ["WORLD_SIZE"] = "1" if alone else "2"
    edits = folder / ("none" if name == "edit_nothing" else "edits.jsonl")
    kept = folder / {"edit_alone": "values alone", "edit": "values", "edit_again": "values"}.get(name, "values killed")
    if name == "edit_killed" and second:
        values._minimise = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    settings = ["--layers", "0-1", "--method", "memit", "--ridge", "0.1", "--config", folder / "settings.json"]
    places = ["--stats", folder / "stats", "--values", kept, "--out", folder / name]
    return cli.main(list(map(str, ["edit", folder / "model", edits, *settings, *places])))


def collect(folder: Path, name: str) -> int:
    try:
        with joined() as world:
            progress = kill_after(2, world) if name == "killed" else silent
            collect_on(folder, world, progress)
    except EmmetError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def collect_on(folder: Path, world: World, progress: Progress) -> statistics.Statistics:
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    return statistics.collect_statistics(
        model,
        TOKENIZER,
        folder / "text.txt",
        layers=[0, 1],
        tokens=600,
        sequence_length=20,
        batch_tokens=60,
        out=folder / "stats",
        checkpoint_seconds=0,
        progress=progress,
        world=world,
    )


def kill_after(batches: int, world: World) -> Progress:
    """Progress at which the second process is killed before its next checkpoint."""
    reports = iter(range(batches))

    def progress(_stage: str, _done: int, _total: int) -> None:
        if next(reports, None) is None and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def counting(owner: object, name: str) -> list[None]:
    """A list that grows with every call of a function."""
    function, calls = getattr(owner, name), list[None]()

    def counted(*arguments: object) -> object:
        calls.append(None)
        return function(*arguments)

    setattr(owner, name, counted)
    return calls


if __name__ == "__main__":
    main()
