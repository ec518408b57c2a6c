"""The same command line twice, in processes of their own, writes the same bytes: see docs/reliability.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workspace import EDITS, TEXT, contents, save_model, write_lines

STATISTICS = "stats ../model --corpus text.txt --layers 0-1 --tokens 1000 --out stats"
EXPORT = "export delta --model ../model --format model --out edited"
EDIT = "edit ../model edits.jsonl --layers 0-1 --method memit --ridge 0.1 --stats stats --out delta --values values"


def test_the_command_line_writes_the_same_bytes_again(tmp_path: Path) -> None:
    save_model(tmp_path / "model")  # one for both: a delta says where it was
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_lines(folder / "edits.jsonl", EDITS)
        (folder / "text.txt").write_text(TEXT)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        for line in (STATISTICS, EDIT, EXPORT):
            arguments = [sys.executable, "-m", "emmet", *line.split(), "--quiet"]
            subprocess.run(arguments, cwd=folder, env=environment, check=True)
    first, second = map(contents, folders)
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()
