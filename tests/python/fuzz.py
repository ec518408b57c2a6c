"""Fuzzing of a reader: `python tests/python/fuzz.py READER`, with libFuzzer's options; without a reader it lists them.

Only Python reports what it has covered: the extension is fuzzed by chance, with whatever the readers let through.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["emmet", "json"]):
    from readers import READERS, attempt, seed


def main() -> None:
    if len(sys.argv) == 1:
        print(*READERS)
        return
    name, *options = sys.argv[1:]
    reader = READERS[name]
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        (corpus / "seed").write_bytes(seed(reader, Path(folder)))

        def try_once(content: bytes) -> None:
            attempt(reader, Path(folder), content)

        atheris.Setup([sys.argv[0], str(corpus), *options], try_once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
