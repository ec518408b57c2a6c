"""The folder of a sweep: a manifest, and one JSON file a run that is written whole after each few batches."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..output import MANIFEST
from ..storage import parse_json, write_json, write_text

FORMAT = "emmet.sweep.1"

Outcome = dict[str, Any]
"""What came of one batch, as JSON.

"first" and "end" say which records it edited; "records" holds the metrics of those that were scored, and "layers" the
`LayerFigures`. Both are empty if it failed; "error" says why. "drift" is the `TextDrift`, where it was measured.
"""

_NEEDED = {"first", "end", "layers", "records"}


@dataclass(frozen=True)
class RunFile:
    """The outcomes of a run's batches, in order. `made_of` is all that they depend on, as JSON."""

    path: Path
    made_of: Mapping[str, Any]

    def read(self) -> list[Outcome]:
        """The outcomes so far, none if the file is missing.

        Raises FormatError if the file is damaged, or depends on anything else.
        """
        try:
            found = parse_json(self.path.read_text(encoding="utf-8"))
            made_of, outcomes = dict(found["run"]), list(found["batches"])
            _check_whole(found["checksum"], made_of, outcomes)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{self.path} is not what `emmet sweep` wrote there: it is damaged, or of an earlier version; "
            message += "delete it, and it will be run again"
            raise FormatError(message) from error
        expected = json.loads(json.dumps(self.made_of))  # tuples are lists in the file
        differing = sorted(name for name in expected | made_of if expected.get(name) != made_of.get(name))
        if differing:
            message = f"{self.path} is of another sweep, which differs in {', '.join(differing)}: name another folder"
            raise FormatError(message)
        return outcomes

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Replace the file by one with these outcomes, one a line."""
        run = json.dumps(self.made_of, ensure_ascii=False, allow_nan=False)
        lines = ",\n".join(json.dumps(outcome, ensure_ascii=False, allow_nan=False) for outcome in outcomes)
        checksum = _checksum(self.made_of, outcomes)
        write_text(self.path, f'{{"run": {run},\n"batches": [\n{lines}\n],\n"checksum": "{checksum}"}}\n')


def _checksum(made_of: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The CRC-32 of a run's content: against accidents."""
    return f"{zlib.crc32(json.dumps([made_of, outcomes]).encode()):08x}"


def _check_whole(checksum: str, made_of: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    if checksum != _checksum(made_of, outcomes) or not all(outcome.keys() >= _NEEDED for outcome in outcomes):
        message = "the content is not what its checksum was made of"
        raise ValueError(message)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Mark a folder as that of a sweep, and say what it is made of."""
    write_json(folder / MANIFEST, {"format": FORMAT, **facts})
