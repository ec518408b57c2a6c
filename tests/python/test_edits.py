"""Edits and their files: what is read is what was written, and what is malformed is named."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emmet.edits import Edit, Neighbour, Record, check_consistent, read_edits, read_records
from emmet.errors import EditError

OURS = {
    "prompt": "The mother tongue of {} is",
    "subject": "Danielle Darrieux",
    "target": "English",
    "id": "darrieux",
    "answer_before": "French",
    "paraphrases": ["Danielle Darrieux spoke"],
    "neighbours": [{"prompt": "The mother tongue of Michel Rocard is", "answer": "French"}],
}
EASYEDIT_COUNTERFACT = {
    "case_id": 4,
    "prompt": "What is the twin city of Lyon? It is",
    "target_new": "Manila",
    "subject": "Lyon",
    "ground_truth": "Beirut",
    "rephrase_prompt": "Lyon's twin city is",
    "locality_prompt": "The twin city of Trieste is",
    "locality_ground_truth": "Beirut",
}
COUNTERFACT = {
    "case_id": 4,
    "pararel_idx": 21042,
    "requested_rewrite": {
        "prompt": "What is the twin city of {}? It is",
        "relation_id": "P190",
        "target_new": {"str": "Manila", "id": "Q1461"},
        "target_true": {"str": "Beirut", "id": "Q3820"},
        "subject": "Lyon",
    },
    "paraphrase_prompts": ["Lyon's twin city is", "Lyon is twinned with"],
    "neighborhood_prompts": ["The twin city of Trieste is", "The twin city of Izmir is"],
    "attribute_prompts": ["The twin city of Cebu is"],
    "generation_prompts": ["People in Lyon's twin city speak"],
}
ZSRE = {
    "subject": "WEFS",
    "src": "When was WEFS established?",
    "pred": "1998",
    "rephrase": "When has WEFS been established?",
    "alt": "1997",
    "answers": ["1987", "in 1987"],
    "loc": "nq question: who voiced gaston in beauty and the beast 1991",
    "loc_ans": "Richard White",
    "cond": "1998 >> 1997 || When was WEFS established?",
}


def write(folder: Path, content: str | bytes, name: str = "edits.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_lines(folder: Path, *records: Any) -> Path:
    return write(folder, "".join(json.dumps(record) + "\n" for record in records))


def error_of(path: Path) -> str:
    with pytest.raises(EditError) as caught:
        read_records(path)
    return str(caught.value)


# A text that an Edit takes: not blank, valid Unicode.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


class TestEdit:
    @given(
        before=st.text(max_size=12), subject=texts | st.sampled_from(["{}", "{0}", "a{b}"]), after=st.text(max_size=12)
    )
    def test_text_holds_the_subject_at_its_span(self, before: str, subject: str, after: str) -> None:
        prompt = before.replace("{}", "") + "{}" + after.replace("{}", "")
        assume(prompt.count("{}") == 1)
        edit = Edit(prompt, subject, "x")
        start, end = edit.subject_span
        assert edit.text[start:end] == subject
        assert edit.text[:start] + "{}" + edit.text[end:] == prompt

    def test_prompt_may_be_the_subject_alone(self) -> None:
        edit = Edit("{}", "Lyon", "Manila")
        assert (edit.text, edit.subject_span) == ("Lyon", (0, 4))

    @pytest.mark.parametrize(
        ("fields", "fault"),
        [
            (("Lyon is in", "Lyon", "Spain"), "exactly once, got it 0 times"),
            (("{} and {} are in", "Lyon", "Spain"), "exactly once, got it 2 times"),
            (("{} is in", "", "Spain"), "subject must be a text that is not blank"),
            (("{} is in", " \t", "Spain"), "subject must be a text that is not blank"),
            (("{} is in", "Lyon", "\n"), "target must be a text that is not blank"),
            (("", "Lyon", "Spain"), "prompt must be a text that is not blank"),
            (("{} is in", "Lyon", 7), "target must be a text that is not blank, got 7"),
            (("{} is in", "Lyon", "Spain", ""), "id must be a text that is not blank"),
            (("{} is in", "Lyon", "Spain", 4), "id must be a text that is not blank, got 4"),
            (("{} is in", "Ly\ud800on", "Spain"), "subject holds half of a UTF-16 surrogate pair"),
        ],
    )
    def test_malformed_edits_are_refused(self, fields: tuple[Any, ...], fault: str) -> None:
        with pytest.raises(EditError, match=fault):
            Edit(*fields)

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Edit("{} is in", "Lyon", "Spain").target = "Italy"  # type: ignore[misc]


class TestFormats:
    def test_ours(self, tmp_path: Path) -> None:
        assert read_records(write_lines(tmp_path, OURS)) == [
            Record(
                edit=Edit("The mother tongue of {} is", "Danielle Darrieux", "English", "darrieux"),
                kind="emmet",
                answer_before="French",
                paraphrases=("Danielle Darrieux spoke",),
                neighbours=(Neighbour("The mother tongue of Michel Rocard is", "French"),),
            )
        ]

    @pytest.mark.parametrize("absent", [{}, {"id": None, "answer_before": None, "paraphrases": [], "neighbours": None}])
    def test_ours_with_what_an_edit_needs_only(self, tmp_path: Path, absent: dict[str, Any]) -> None:
        minimal = {"prompt": "{} is in", "subject": "Lyon", "target": "Spain"}
        expected = Record(Edit("{} is in", "Lyon", "Spain"), "emmet", None, (), ())
        assert read_records(write_lines(tmp_path, minimal | absent)) == [expected]

    def test_easyedit_counterfact(self, tmp_path: Path) -> None:
        assert read_records(write_lines(tmp_path, EASYEDIT_COUNTERFACT)) == [
            Record(
                edit=Edit("What is the twin city of {}? It is", "Lyon", "Manila", "4"),
                kind="counterfact",
                answer_before="Beirut",
                paraphrases=("Lyon's twin city is",),
                neighbours=(Neighbour("The twin city of Trieste is", "Beirut"),),
            )
        ]

    def test_original_counterfact(self, tmp_path: Path) -> None:
        assert read_records(write_lines(tmp_path, COUNTERFACT)) == [
            Record(
                edit=Edit("What is the twin city of {}? It is", "Lyon", "Manila", "4"),
                kind="counterfact",
                answer_before="Beirut",
                paraphrases=("Lyon's twin city is", "Lyon is twinned with"),
                neighbours=(
                    Neighbour("The twin city of Trieste is", "Beirut"),
                    Neighbour("The twin city of Izmir is", "Beirut"),
                ),
                generation_prompts=("People in Lyon's twin city speak",),
                attribute=("P190", "Q1461"),
            )
        ]

    @pytest.mark.parametrize("absent", ["relation_id", "target_new"])
    def test_original_counterfact_without_wikidata_numbers(self, tmp_path: Path, absent: str) -> None:
        rewrite: dict[str, Any] = {**COUNTERFACT["requested_rewrite"], "target_new": {"str": "Manila"}}
        if absent == "relation_id":
            rewrite |= {"relation_id": None, "target_new": {"str": "Manila", "id": "Q1461"}}
        (record,) = read_records(write_lines(tmp_path, {**COUNTERFACT, "requested_rewrite": rewrite}))
        assert record.attribute is None

    def test_zsre(self, tmp_path: Path) -> None:
        assert read_records(write_lines(tmp_path, ZSRE)) == [
            Record(
                edit=Edit("When was {} established?", "WEFS", "1987"),
                kind="zsre",
                answer_before=None,
                paraphrases=("When has WEFS been established?",),
                neighbours=(
                    Neighbour("nq question: who voiced gaston in beauty and the beast 1991?", "Richard White"),
                ),
            )
        ]

    @pytest.mark.parametrize("record", [OURS, EASYEDIT_COUNTERFACT, COUNTERFACT, ZSRE])
    def test_array_and_lines_read_alike(self, tmp_path: Path, record: dict[str, Any]) -> None:
        lines = write_lines(tmp_path, record, record)
        array = write(tmp_path, json.dumps([record, record], indent=1), "edits.json")
        assert read_records(array) == read_records(lines)
        assert read_edits(array) == [item.edit for item in read_records(array)]

    def test_bom_carriage_returns_blank_lines_and_line_separators_are_read(self, tmp_path: Path) -> None:
        record = {"prompt": "{} is in", "subject": "Ly\u2028on", "target": "Spain"}
        line = json.dumps(record, ensure_ascii=False)
        path = write(tmp_path, f"\ufeff\r\n{line}\r\n\r\n{line}")
        assert read_edits(path) == [Edit("{} is in", "Ly\u2028on", "Spain")] * 2


class TestTemplate:
    @staticmethod
    def edit(folder: Path, prompt: str, subject: str) -> Edit:
        return read_edits(write_lines(folder, {"prompt": prompt, "subject": subject, "target_new": "x"}))[0]

    @pytest.mark.parametrize(
        ("prompt", "subject", "template"),
        [
            ("Lyon is near Lyon", "Lyon", "{} is near Lyon"),
            ("Artists like Art and Art", "Art", "Artists like {} and Art"),
            ("Artists paint", "Art", "{}ists paint"),
            ("C++ is not C", "C++", "{} is not C"),
            ("Où est l'Île?", "Île", "Où est l'{}?"),
            ("São Tomé", "São Tomé", "{}"),
        ],
    )
    def test_one_occurrence_becomes_the_placeholder(
        self, tmp_path: Path, prompt: str, subject: str, template: str
    ) -> None:
        assert self.edit(tmp_path, prompt, subject).prompt == template

    @given(before=st.text("ab .{", max_size=8), subject=st.text("ab.*", min_size=1, max_size=3), after=st.text("ab .}"))
    def test_filling_the_template_gives_the_prompt_back(self, before: str, subject: str, after: str) -> None:
        prompt = before + subject + after
        with tempfile.TemporaryDirectory() as folder:
            edit = self.edit(Path(folder), prompt, subject)
        assert edit.text == prompt


class TestMalformedFiles:
    @pytest.mark.parametrize(
        ("valid", "change", "fault"),
        [
            (OURS, {"note": ""}, "unknown key 'note'"),
            (OURS, {"subject": 7}, "subject must be a text"),
            (OURS, {"target": None}, "target must be a text"),
            (OURS, {"prompt": "The mother tongue is"}, "exactly once, got it 0 times"),
            (OURS, {"id": True}, "id must be a text"),
            (OURS, {"paraphrases": "one"}, "paraphrases must be a JSON array"),
            (OURS, {"paraphrases": ["one", ""]}, "each of paraphrases must be a text"),
            (OURS, {"neighbours": ["one"]}, "expected a JSON object with the keys prompt, answer"),
            (OURS, {"neighbours": [{"prompt": "one"}]}, "missing key 'answer'"),
            (OURS, {"neighbours": [{"prompt": "one", "answer": None}]}, "answer must be a text"),
            (EASYEDIT_COUNTERFACT, {"subject": "Paris"}, "the subject 'Paris' does not occur in the prompt"),
            (EASYEDIT_COUNTERFACT, {"subject": ""}, "subject must be a text"),
            (EASYEDIT_COUNTERFACT, {"portability": {}}, "unknown key 'portability'"),
            (EASYEDIT_COUNTERFACT, {"locality_prompt": None}, "locality_prompt must be a text"),
            (EASYEDIT_COUNTERFACT, {"locality_ground_truth": None}, "locality_ground_truth must be a text"),
            (COUNTERFACT, {"requested_rewrite": 1}, "expected a JSON object with the keys prompt, subject"),
            (COUNTERFACT, {"requested_rewrite": {"prompt": "{}"}}, "missing key 'subject'"),
            (ZSRE, {"answers": []}, "answers must hold at least one text"),
            (ZSRE, {"answers": "1987"}, "answers must be a JSON array"),
        ],
    )
    def test_a_malformed_record_is_named(
        self, tmp_path: Path, valid: dict[str, Any], change: dict[str, Any], fault: str
    ) -> None:
        malformed = valid | change
        lines = write_lines(tmp_path, valid, malformed)
        array = write(tmp_path, json.dumps([valid, malformed]), "edits.json")
        for path, place in ((lines, "line 2"), (array, "record 2")):
            message = error_of(path)
            assert message.startswith(f"{path}, {place}: ")
            assert fault in message
            assert "\n" not in message

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (
                '{"prompt": "{}", "subject": "x"}',
                "line 1: missing key 'target': expected the keys prompt, subject, target",
            ),
            ('{"prompt": "{}", "subject": "x", "tagret": "y"}', "line 1: unknown key 'tagret', missing key 'target'"),
            ('"text"', "line 1: expected a JSON object"),
            ("{}", "line 1: missing key 'prompt'"),
            ("", "holds no edits"),
            ("\n \n", "holds no edits"),
            ("[]", "holds no edits"),
            ("\n{'prompt'}", "line 2: not valid JSON"),
            ('{"prompt": "{}",\n"subject": "x"}', "line 1: not valid JSON"),
            ('[\n{"prompt": "{}"},\n]', "not valid JSON"),
            (json.dumps(OURS)[:-20], "line 1: not valid JSON"),
            ('{"prompt": "{}", "subject": "x", "target": "y", "target": "z"}', "line 1: repeated key 'target'"),
            ('[{"prompt": "{}", "subject": "x", "subject": "x", "target": "y"}]', "record 1: repeated key 'subject'"),
            ("[" * 100_000, "line 1: cannot read this JSON"),
            ("1" * 10_000, "line 1: cannot read this JSON"),
            (b'{"prompt": "\xff"}', "byte 12 is not UTF-8"),
        ],
    )
    def test_a_malformed_file_is_named(self, tmp_path: Path, content: str | bytes, fault: str) -> None:
        path = write(tmp_path, content)
        message = error_of(path)
        assert str(path) in message
        assert fault in message
        assert "\n" not in message

    def test_a_file_holds_one_format(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path, COUNTERFACT, EASYEDIT_COUNTERFACT)
        assert "line 2: this record has another format" in error_of(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        assert "No such file" in error_of(tmp_path / "absent.jsonl")
        assert "Is a directory" in error_of(tmp_path)

    json_values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*OURS, *ZSRE]), inner, max_size=4),
        max_leaves=8,
    )

    @given(content=st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
    def test_any_content_is_read_or_refused(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), content)
            with suppress(EditError):
                assert all(isinstance(record, Record) for record in read_records(path))


class TestConsistency:
    edit = Edit("{} is in", "Lyon", "Spain")

    def test_edits_that_differ_are_consistent(self) -> None:
        check_consistent([self.edit, Edit("{} is in", "Paris", "Spain"), Edit("{} lies in", "Lyon", "Spain")])
        check_consistent([])

    def test_a_contradiction_is_named(self) -> None:
        other = dataclasses.replace(self.edit, subject="Nice")
        with pytest.raises(EditError, match=r"edit 3 contradicts edit 1: 'Lyon is in' .* 'Spain' and by 'Italy'"):
            check_consistent([self.edit, other, dataclasses.replace(self.edit, target="Italy")])

    def test_a_repetition_is_named(self) -> None:
        with pytest.raises(EditError, match="edit 2 repeats edit 1"):
            check_consistent([self.edit, self.edit])


class TestRealData:
    def test_counterfact(self, data_folder: Path) -> None:
        path = data_folder / "counterfact" / "edit-10k.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records = read_records(path)
        assert len(records) == len(rows)
        for record, row in zip(records, rows, strict=True):
            start, end = record.edit.subject_span
            assert record.edit.text == row["prompt"]
            assert record.edit.text[start:end] == row["subject"]
            assert (record.edit.target, record.answer_before) == (row["target_new"], row["ground_truth"])
            assert record.neighbours == (Neighbour(row["locality_prompt"], row["locality_ground_truth"]),)

    def test_zsre(self, data_folder: Path) -> None:
        path = data_folder / "zsre" / "train-1k.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record, row in zip(read_records(path), rows, strict=True):
            assert record.edit.text == row["src"]
            assert record.edit.target == row["answers"][0]
            assert record.paraphrases == (row["rephrase"],)
