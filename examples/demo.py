"""Watch a real language model change its mind about real facts, and take it back.

    python examples/demo.py MODEL

MODEL is a Hugging Face name, a folder or a GGUF file. The facts are in facts.jsonl beside this file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

import emmet
from emmet.architectures import discover
from emmet.edits import Record, read_records
from emmet.evaluate import evaluate
from emmet.loading import load

FACTS = Path(__file__).parent / "facts.jsonl"
TOKENS = 6  # of each answer that is shown


class Demo:
    """The model, and how long each stage took."""

    def __init__(self, name: str) -> None:
        self.seconds: dict[str, float] = {}
        with self.stage("load"):
            self.model, self.tokenizer = load(name)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def answers(self, prompts: list[str]) -> list[str]:
        """The model's greedy continuations."""
        texts = []
        for prompt in prompts:
            inputs = self.tokenizer(prompt, return_tensors="pt")
            ids = self.model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
            text = self.tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            texts.append(" ".join(text.split()))
        return texts

    def scores(self, records: list[Record]) -> str:
        scores = evaluate(discover(self.model), self.tokenizer, records).to_json()
        return "  ".join(f"{name} {scores[name]:5.1f}" for name in ("ES", "PS", "NS"))


def prompts_of(record: Record) -> list[str]:
    """The prompt itself, a paraphrase and a neighbour."""
    return [record.edit.text, record.paraphrases[0], record.neighbours[0].prompt]


def known(demo: Demo, records: list[Record]) -> list[Record]:
    """Those facts that the model answers as the world does: only these can be seen to change."""
    found = []
    for record in records:
        (answer,) = demo.answers([record.edit.text])
        if answer.startswith(record.answer_before or ""):
            found.append(record)
        else:
            print(f"left out, the model does not know it: {record.edit.text} … {answer}")
    return found


def show_table(records: list[Record], before: list[list[str]], after: list[list[str]]) -> None:
    for record, old, new in zip(records, before, after, strict=True):
        print(f"\n{record.edit.text} … {record.edit.target}")
        for kind, prompt, was, now in zip(
            ("prompt", "paraphrase", "neighbour"), prompts_of(record), old, new, strict=True
        ):
            print(f"  {kind:<10}  {prompt:<58}  {was:<30} → {now}")


def progress_bars() -> emmet.progress.Progress:
    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(total=total, desc=stage, leave=False))
        bar.update(done - bar.n)
        if done == total:
            bars.pop(stage).close()

    return show


def main(name: str) -> None:
    demo = Demo(name)
    records = known(demo, read_records(FACTS))
    before = [demo.answers(prompts_of(record)) for record in records]
    scores_before = demo.scores(records)
    weights = {key: weight.clone() for key, weight in demo.model.state_dict().items()}

    with demo.stage("statistics"):
        editor = emmet.Editor(demo.model, demo.tokenizer, progress=progress_bars())
    with demo.stage("edit"):
        handle = editor.edit([record.edit for record in records])
    after = [demo.answers(prompts_of(record)) for record in records]
    scores_after = demo.scores(records)
    with demo.stage("undo"):
        handle.undo()

    show_table(records, before, after)
    (report,) = handle.diagnostics
    print(f"\nbefore  {scores_before}\nafter   {scores_after}")
    print(
        f"\nEMMET edited {len(records)} facts in layer {report.layer}: constraint residual "
        f"{report.diagnostics.constraint_residual:.0e}, ridge {report.diagnostics.ridge:g}"
    )
    same = all(torch.equal(weights[key], weight) for key, weight in demo.model.state_dict().items())
    print(f"after undo every weight is {'bit-identical to before' if same else 'NOT what it was'}")
    print("time: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in demo.seconds.items()))
    if len(records) < 5 or not same:
        sys.exit("the demo did not go as it should")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/demo.py MODEL")
    main(sys.argv[1])
