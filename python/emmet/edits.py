"""Edits, and the files that they are read from."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from .errors import EditError
from .storage import parse_json

_PLACEHOLDER = "{}"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Edit:
    """One fact to write into a model: `prompt`, with `subject` in the place of "{}", is to be continued by `target`.

    >>> Edit("The mother tongue of {} is", "Danielle Darrieux", "English").text
    'The mother tongue of Danielle Darrieux is'

    `id` names the edit in reports, as CounterFact's case_id does; None if it has no name. Weights do not depend on it.

    Raises EditError if a text is blank or `prompt` does not hold "{}" exactly once.
    """

    prompt: str
    subject: str
    target: str
    id: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            _checked_text(name, getattr(self, name))
        if self.id is not None:
            _checked_text("id", self.id)
        places = self.prompt.count(_PLACEHOLDER)
        if places != 1:
            message = f'prompt must hold "{{}}" exactly once, got it {places} times in {self.prompt!r}: '
            message += "put it where the subject goes"
            raise EditError(message)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace(_PLACEHOLDER, self.subject)  # format() would also interpret braces in the text

    @property
    def subject_span(self) -> tuple[int, int]:
        """Where the subject stands in `text`: its first character, and the one after its last."""
        start = self.prompt.index(_PLACEHOLDER)
        return start, start + len(self.subject)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A prompt about another subject, whose answer an edit must leave as it is."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Record:
    """An edit with what is needed to judge it. `kind` says by which data set's definitions it is scored.

    `attribute` is what the edit gives its subject: the relation and the target, as Wikidata numbers them.
    """

    edit: Edit
    kind: Literal["emmet", "counterfact", "zsre"]
    answer_before: str | None
    paraphrases: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    generation_prompts: tuple[str, ...] = ()
    attribute: tuple[str, str] | None = None


def read_edits(path: str | PathLike[str]) -> list[Edit]:
    """The edits of a file that `read_records` reads."""
    return [record.edit for record in read_records(path)]


def read_records(path: str | PathLike[str]) -> list[Record]:
    """Reads a JSON array or JSON lines, all records in one of these formats, which is recognised by its keys.

    - Ours: prompt (with "{}"), subject, target; optionally id, answer_before, paraphrases and neighbours, a list of
      objects with prompt and answer.
    - CounterFact as published with ROME (Meng et al. 2022, arXiv 2202.05262).
    - CounterFact as EasyEdit distributes it (Wang et al. 2023, arXiv 2308.07269): flat, one paraphrase and neighbour.
    - zsRE as published with MEND (Mitchell et al. 2022, arXiv 2110.11309), read as MEMIT does: the target is the first
      answer, the neighbour a question of Natural Questions.

    Raises EditError, which names the file and the line or record, for a file that is missing, empty or malformed, and
    for unknown and repeated keys.
    """
    path = Path(path)
    records: list[Record] = []
    first_format: _Format | None = None
    for place, value in _json_values(path):
        try:
            record_format = _format_of(value)
            first_format = first_format or record_format
            if record_format is not first_format:
                message = "this record has another format than those before it: a file holds one format, split it"
                raise EditError(message)
            records.append(record_format(value))
        except EditError as error:
            message = f"{path}, {place}: {error}"
            raise EditError(message) from None
    if not records:
        message = f"{path} holds no edits: expected a JSON array or one JSON object a line"
        raise EditError(message)
    return records


def check_consistent(edits: Iterable[Edit]) -> None:
    """Raises EditError if two edits have the same prompt and subject: no weights can satisfy both, or one is idle."""
    seen: dict[tuple[str, str], tuple[int, Edit]] = {}
    for number, edit in enumerate(edits, start=1):
        first_number, first = seen.setdefault((edit.prompt, edit.subject), (number, edit))
        if first_number == number:
            continue
        fault = "repeats" if edit.target == first.target else "contradicts"
        message = (
            f"edit {number} {fault} edit {first_number}: {edit.text!r} is to be continued by {first.target!r} "
            f"and by {edit.target!r}; keep one of them"
        )
        raise EditError(message)


def _json_values(path: Path) -> Iterator[tuple[str, object]]:
    """Each record of a file with its place. JSON objects come as tuples of pairs, which keep repeated keys."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        records = _parse(text, path, first_line=1)
        assert isinstance(records, list)
        yield from ((f"record {number}", record) for number, record in enumerate(records, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would split at U+2028 inside of strings
        if line.strip():
            yield f"line {number}", _parse(line, path, first_line=number)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; expected a file of edits"
    except UnicodeDecodeError as error:
        message = f"{path}: byte {error.start} is not UTF-8; expected a UTF-8 text file of edits, convert it"
    raise EditError(message)


def _parse(text: str, path: Path, *, first_line: int) -> object:
    try:
        value: object = parse_json(text, object_pairs_hook=tuple)
        return value
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        message = f"{path}, line {line}: not valid JSON: {error.msg} at column {error.colno}; "
        message += "expected a JSON array or one JSON object a line"
    except ValueError as error:  # valid JSON, but a number or a nesting beyond Python's limits
        message = f"{path}, line {first_line}: cannot read this JSON: {error}"
    raise EditError(message)


_Format = Callable[[object], Record]


def _format_of(value: object) -> _Format:
    keys = {key for key, _ in value} if isinstance(value, tuple) else set()
    by_key: dict[str, _Format] = {
        "requested_rewrite": _read_counterfact,
        "target_new": _read_easyedit_counterfact,
        "src": _read_zsre,
    }
    return next((record_format for key, record_format in by_key.items() if key in keys), _read_ours)


def _read_ours(value: object) -> Record:
    record = _Object(
        value,
        required=("prompt", "subject", "target"),
        optional=("id", "answer_before", "paraphrases", "neighbours"),
    )
    neighbours = [_Object(neighbour, required=("prompt", "answer")) for neighbour in record.items("neighbours")]
    return Record(
        edit=Edit(record.text("prompt"), record.text("subject"), record.text("target"), record.identifier("id")),
        kind="emmet",
        answer_before=record.optional_text("answer_before"),
        paraphrases=record.texts("paraphrases"),
        neighbours=tuple(Neighbour(neighbour.text("prompt"), neighbour.text("answer")) for neighbour in neighbours),
    )


def _read_counterfact(value: object) -> Record:
    record = _Object(
        value,
        required=("requested_rewrite",),
        optional=(
            "case_id",
            "pararel_idx",
            "paraphrase_prompts",
            "neighborhood_prompts",
            "attribute_prompts",
            "generation_prompts",
        ),
    )
    rewrite = _Object(
        record.value("requested_rewrite"),
        required=("prompt", "subject", "target_new", "target_true"),
        optional=("relation_id",),
    )
    target = _Object(rewrite.value("target_new"), required=("str",), optional=("id",))
    relation, value = rewrite.value("relation_id"), target.value("id")
    answer = _Object(rewrite.value("target_true"), required=("str",), optional=("id",)).text("str")
    return Record(
        edit=Edit(rewrite.text("prompt"), rewrite.text("subject"), target.text("str"), record.identifier("case_id")),
        kind="counterfact",
        answer_before=answer,
        paraphrases=record.texts("paraphrase_prompts"),
        neighbours=tuple(Neighbour(prompt, answer) for prompt in record.texts("neighborhood_prompts")),
        generation_prompts=record.texts("generation_prompts"),
        attribute=(relation, value) if isinstance(relation, str) and isinstance(value, str) else None,
    )


def _read_easyedit_counterfact(value: object) -> Record:
    record = _Object(
        value,
        required=("prompt", "subject", "target_new"),
        optional=("case_id", "ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"),
    )
    subject = record.text("subject")
    prompt = _template(record.text("prompt"), subject)
    return Record(
        edit=Edit(prompt, subject, record.text("target_new"), record.identifier("case_id")),
        kind="counterfact",
        answer_before=record.optional_text("ground_truth"),
        paraphrases=record.at_most_one_text("rephrase_prompt"),
        neighbours=record.at_most_one_neighbour("locality_prompt", "locality_ground_truth"),
    )


def _read_zsre(value: object) -> Record:
    record = _Object(
        value,
        required=("subject", "src", "answers"),
        optional=("pred", "rephrase", "alt", "loc", "loc_ans", "cond"),
    )
    subject = record.text("subject")
    answers = record.texts("answers")
    if not answers:
        message = "answers must hold at least one text, of which the first is the target, got none"
        raise EditError(message)
    return Record(
        edit=Edit(_template(record.text("src"), subject), subject, answers[0]),
        kind="zsre",
        answer_before=None,
        paraphrases=record.at_most_one_text("rephrase"),
        neighbours=tuple(
            Neighbour(neighbour.prompt + "?", neighbour.answer)
            for neighbour in record.at_most_one_neighbour("loc", "loc_ans")
        ),
    )


def _template(text: str, subject: str) -> str:
    """`text` with one occurrence of `subject`, if possible one that is not part of a longer word, replaced by "{}"."""
    literal = re.escape(subject)
    match = re.search(rf"(?<!\w){literal}(?!\w)", text) or re.search(literal, text)
    if match is None:
        message = f"the subject {subject!r} does not occur in the prompt {text!r}: both must be spelt alike"
        raise EditError(message)
    return text[: match.start()] + _PLACEHOLDER + text[match.end() :]


class _Object:
    """A JSON object, given as its key-value pairs: checks keys at once and values as they are asked for."""

    def __init__(self, pairs: object, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        if not isinstance(pairs, tuple):
            message = f"expected a JSON object with the keys {', '.join(required)}, got {pairs!r}"
            raise EditError(message)
        counts = Counter(key for key, _ in pairs)
        known = (*required, *optional)
        faults = [f"repeated key {key!r}" for key, count in counts.items() if count > 1]
        faults += [f"unknown key {key!r}" for key in counts if key not in known]
        faults += [f"missing key {key!r}" for key in required if key not in counts]
        if faults:
            message = f"{', '.join(faults)}: expected the keys {', '.join(required)}"
            message += f" and optionally {', '.join(optional)}" if optional else ""
            raise EditError(message)
        self._values: dict[str, object] = dict(pairs)

    def value(self, key: str) -> object:
        """The value of `key`; None where the key is absent, as for a JSON null."""
        return self._values.get(key)

    def text(self, key: str) -> str:
        return _checked_text(key, self.value(key))

    def optional_text(self, key: str) -> str | None:
        return None if self.value(key) is None else self.text(key)

    def identifier(self, key: str) -> str | None:
        """A text, or a whole number as a text."""
        value = self.value(key)
        return str(value) if type(value) is int else self.optional_text(key)

    def items(self, key: str) -> list[object]:
        value = self.value(key)
        if value is None:
            return []
        if not isinstance(value, list):
            message = f"{key} must be a JSON array, got {value!r}"
            raise EditError(message)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(_checked_text(f"each of {key}", item) for item in self.items(key))

    def at_most_one_text(self, key: str) -> tuple[str, ...]:
        return () if self.value(key) is None else (self.text(key),)

    def at_most_one_neighbour(self, prompt_key: str, answer_key: str) -> tuple[Neighbour, ...]:
        if self.value(prompt_key) is None and self.value(answer_key) is None:
            return ()
        return (Neighbour(self.text(prompt_key), self.text(answer_key)),)


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        message = f"{name} must be a text that is not blank, got {value!r}"
        raise EditError(message)
    require_encodable(name, value)
    return value


def require_encodable(name: str, text: str) -> None:
    """Raise EditError if a text cannot be written as UTF-8."""
    if _SURROGATE.search(text):
        message = f"{name} holds half of a UTF-16 surrogate pair, or bytes that are no UTF-8: correct {text!r}"
        raise EditError(message)
