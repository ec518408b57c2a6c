"""Random changes of a file: of its bytes, or of a value in its JSON, which get past the parser to what is behind it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

_BYTES = [b"", b"-1", b"null", b"[]", b"1e999", b"\xff", b"9" * 20, b'"', b"{}"]
_NUMBERS = [0, -1, 0.5, 2**31, 2**53 + 1, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf")]
_TEXTS = ["", "{}", "{}{}", "a", "\ud800", "\x00", "../x", "1e999", "é", "F64", "F32", "I64", "BOOL", "x" * 300]
_VALUES: list[Any] = [None, True, [], {}, [[]], [None], {"a": 1}, *_NUMBERS, *_TEXTS]


def change_bytes(content: bytes, choose: random.Random) -> bytes:
    """Up to four short spans replaced, inserted or cut out."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        start = choose.randrange(len(changed) + 1)
        stop = start + choose.choice([0, 1, 1, 2, 8])
        changed[start:stop] = choose.choice([*_BYTES, choose.randbytes(1), changed[:9]])
    return bytes(changed)


def change_values(content: bytes, choose: random.Random) -> bytes:
    """Up to three values changed in a JSON file, a line of a JSON lines file, or the header of a safetensors file.

    Raises ValueError for anything else.
    """
    value, put_back = _json_in(content, choose)
    for _ in range(choose.randint(1, 3)):
        value = _changed(value, choose)
    return put_back(json.dumps(value).encode())


def _json_in(content: bytes, choose: random.Random) -> tuple[Any, Callable[[bytes], bytes]]:
    """A JSON value of a file, and what makes the file of another's text."""
    end = 8 + int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and end <= len(content):
        return json.loads(content[8:end]), lambda text: len(text).to_bytes(8, "little") + text + content[end:]
    try:
        return json.loads(content), lambda text: text
    except ValueError:
        lines = content.splitlines() or [b""]
        number = choose.randrange(len(lines))
        return json.loads(lines[number]), lambda text: b"\n".join([*lines[:number], text, *lines[number + 1 :]])


def _changed(value: Any, choose: random.Random) -> Any:
    """A value with something in it changed, or another."""
    if isinstance(value, str) and value[:1] in ("{", "[") and choose.random() < 0.9:
        try:
            return json.dumps(_changed(json.loads(value), choose))
        except ValueError:
            pass
    if not value or not isinstance(value, list | dict) or choose.random() < 0.1:
        return choose.choice(_VALUES)
    keys = list(range(len(value)) if isinstance(value, list) else value)
    key, changed = choose.choice(keys), value.copy()
    step = choose.randrange(8)
    if step == 0:
        del changed[key]
    elif step == 1 and isinstance(changed, list):
        changed.insert(key, changed[choose.choice(keys)])
    elif step == 1:
        changed[choose.choice(["", "a", "1", *keys])] = changed.pop(key)
    elif step == 2:
        changed[key] = value[choose.choice(keys)]
    else:
        changed[key] = _changed(value[key], choose)
    return changed
