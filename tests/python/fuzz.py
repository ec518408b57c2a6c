"""Fuzzing of a reader: `python tests/python/fuzz.py READER`, with libFuzzer's options; without a reader it lists them.

It starts from a good file and from what earlier runs have found, which is kept in build/fuzz-corpus. Only Python
reports what it has covered: the extension is fuzzed by chance here, and has a fuzz target of its own in tests/fuzz.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

sys.modules["_json"] = None  # type: ignore[assignment]  # so that json parses in Python, which reports what it covers

with atheris.instrument_imports(include=["emmet", "json"]):
    from mutations import change_bytes, change_values
    from readers import READERS, attempt, seed

CORPORA = Path("build/fuzz-corpus")


def main() -> None:
    if len(sys.argv) == 1:
        print(*READERS)
        return
    name, *options = sys.argv[1:]
    reader, corpus = READERS[name], CORPORA / name
    corpus.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        good = seed(reader, Path(folder))
        (corpus / "good").write_bytes(good)

        def try_once(content: bytes) -> None:
            attempt(reader, Path(folder), content)

        def change(content: bytes, size: int, number: int) -> bytes:
            choose = random.Random(number)
            way = choose.randrange(4)
            if way < 2:
                return bytes(atheris.Mutate(content, size))
            if way == 2:
                return change_bytes(good, choose)[:size]
            try:
                return change_values(content, choose)[:size]
            except (ValueError, RecursionError):
                return change_values(good, choose)[:size]

        arguments = [sys.argv[0], str(corpus), f"-artifact_prefix={corpus}-", "-len_control=0", *options]
        atheris.Setup(arguments, try_once, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
