"""How long an evaluation takes: python bench/evaluate.py MODEL --records FILE [--count 1000] [--rounds 10]

For each part of the records two run in turn, so that a machine that slows down slows both: one plain pass over every
prompt with every continuation, in the order of the records, padded in batches, with all logits; and emmet's evaluation,
which also lets the model answer each prompt. Prints seconds, the ratio of the plain pass to it (median over the parts,
with its range), and how far the NLLs are apart. Writes JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from emmet.architectures import Architecture, discover
from emmet.edits import Record, read_records
from emmet.evaluate import Report, evaluate
from emmet.loading import load
from emmet.tokens import encode_prompts, pad_rows


def texts(record: Record) -> Iterator[tuple[str, str]]:
    """Each prompt with the continuation that is wanted, then with the other."""
    target, answer = record.edit.target, record.answer_before
    for prompt in (record.edit.text, *record.paraphrases):
        yield from ((prompt, target), (prompt, answer))
    for neighbour in record.neighbours:
        yield from ((neighbour.prompt, neighbour.answer), (neighbour.prompt, target))


@torch.inference_mode()
def plain_pass(
    arch: Architecture, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int
) -> list[float]:
    """Mean token NLL of each text."""
    pairs = [pair for record in records for pair in texts(record)]
    found = []
    for start in range(0, len(pairs), rows):
        prompts, targets = zip(*pairs[start : start + rows], strict=True)
        batch = encode_prompts(tokenizer, prompts, targets=targets)
        ids, mask = pad_rows([prompt.ids for prompt in batch], device=arch.model.device)
        log_probabilities = functional.log_softmax(arch.model(input_ids=ids, attention_mask=mask).logits, dim=-1)
        for row, prompt in enumerate(batch):
            positions = torch.tensor(prompt.target, device=ids.device)
            found.append(-log_probabilities[row, positions - 1, ids[row, positions]].mean().item())
    return found


def nlls(report: Report) -> list[float]:
    """Mean token NLL of each text, in the order of `texts`."""
    return [
        nll for record in report.per_record for of_kind in record["nll"].values() for pair in of_kind for nll in pair
    ]


def timed(series: list[float], function: Callable[[], Any]) -> Any:
    """Call `function`, and add to `series` how many seconds it took."""
    start = time.perf_counter()
    result = function()
    series.append(time.perf_counter() - start)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--records", type=Path, required=True, help="a file of CounterFact")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10, help="parts that the records are split into")
    parser.add_argument("--rows", type=int, default=32, help="texts in a batch of the plain pass")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model, tokenizer = load(options.model)
    arch = discover(model)
    records = read_records(options.records)[: options.count]
    size = math.ceil(len(records) / options.rounds)
    plain, ours = [], []
    difference = 0.0
    for start in range(0, len(records), size):
        part = records[start : start + size]
        expected = timed(plain, partial(plain_pass, arch, tokenizer, part, options.rows))
        report = timed(ours, partial(evaluate, arch, tokenizer, part))
        difference = max(difference, *(abs(a - b) for a, b in zip(expected, nlls(report), strict=True)))

    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    print(f"{len(records)} records, {torch.get_num_threads()} threads; NLLs differ by {difference:.0e} at most")
    print("| plain pass, s | emmet, s | plain / emmet |\n| --- | --- | --- |")
    print(f"| {sum(plain):.1f} | {sum(ours):.1f} | {spread} |")
    if options.json:
        found = {"records": len(records), "difference": difference, "plain": plain, "emmet": ours}
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
