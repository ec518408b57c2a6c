"""The same command line twice, in processes of their own, writes the same bytes: see docs/reliability.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from emmet.storage import read_tensors
from workspace import EDITS, TEXT, contents, save_model, write_lines

STATISTICS = "stats ../model --corpus text.txt --layers 0-1 --tokens 1000 --out stats"
EDIT = "edit ../model edits.jsonl --layers 0-1 --method memit --ridge 0.1 --stats stats --out delta --values values"


def test_the_command_line_writes_the_same_bytes_again(tmp_path: Path) -> None:
    save_model(tmp_path / "model")  # one for both: a delta says where it was
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_lines(folder / "edits.jsonl", EDITS)
        (folder / "text.txt").write_text(TEXT)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        for line in (STATISTICS, EDIT):
            arguments = [sys.executable, "-m", "emmet", *line.split(), "--quiet"]
            subprocess.run(arguments, cwd=folder, env=environment, check=True)
    first, second = map(without_times, folders)
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()


def without_times(folder: Path) -> dict[str, object]:
    """All files, but for how long solves took, which updates and manifests say."""
    found: dict[str, object] = {}
    for name, content in contents(folder).items():
        if content and name.startswith("delta/layer."):
            tensors, metadata = read_tensors(folder / name)
            arrays = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
            found[name] = arrays, {key: value for key, value in metadata.items() if not key.startswith("seconds_")}
        else:
            found[name] = content and re.sub(rb'"seconds_\w+": [^,\n]+', b"", content)
    return found
