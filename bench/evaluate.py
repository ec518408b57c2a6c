"""How long an evaluation takes: python bench/evaluate.py MODEL --records FILE [--count 1000] [--rounds 10]

For each part of the records two run in turn, so that a machine that slows down slows both: one plain pass over every
prompt with every continuation, in the order of the records, padded in batches, with all logits; and emmet's evaluation,
which also lets the model answer each prompt. Prints seconds, the ratio of the plain pass to it (median over the parts,
with its range), and how far the NLLs are apart. Writes JSON with --json FILE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from emmet.architectures import Architecture, discover
from emmet.edits import Record, read_records
from emmet.evaluate import Report, evaluate
from emmet.loading import load
from emmet.tokens import encode_prompts, pad_rows
from measure import Figures, in_turn, parser, ratios, report


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
        logits = arch.model(input_ids=ids, attention_mask=mask).logits
        for row, prompt in enumerate(batch):
            positions = torch.tensor(prompt.target, device=ids.device)
            found.append(functional.cross_entropy(logits[row, positions - 1], ids[row, positions]).item())
    return found


def nlls(report: Report) -> list[float]:
    """Mean token NLL of each text, in the order of `texts`."""
    return [
        nll for record in report.per_record for of_kind in record["nll"].values() for pair in of_kind for nll in pair
    ]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--records", type=Path, required=True, help="a file of CounterFact")
    options_of.add_argument("--count", type=int, default=1000)
    options_of.add_argument("--rounds", type=int, default=10, help="parts that the records are split into")
    options_of.add_argument("--rows", type=int, default=32, help="texts in a batch of the plain pass")
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    arch = discover(model)
    records = read_records(options.records)[: options.count]
    size = math.ceil(len(records) / options.rounds)
    taken: dict[str, list[float]] = {"plain": [], "emmet": []}
    expected: list[float] = []
    found: list[float] = []
    for start in range(0, len(records), size):
        part = records[start : start + size]
        ways = {
            "plain": lambda part=part: expected.extend(plain_pass(arch, tokenizer, part, options.rows)),
            "emmet": lambda part=part: found.extend(nlls(evaluate(arch, tokenizer, part))),
        }
        for name, seconds in in_turn(ways, rounds=1).items():
            taken[name] += seconds
    row = {
        "records": len(records),
        "plain pass, s": Figures([sum(taken["plain"])], ".1f"),
        "emmet, s": Figures([sum(taken["emmet"])], ".1f"),
        "plain / emmet": Figures(ratios(taken["plain"], taken["emmet"])),
        "NLLs differ by": Figures([max(abs(a - b) for a, b in zip(expected, found, strict=True))], ".0e"),
    }
    report(f"Evaluation, {options.rounds} parts", [row], options.json)


if __name__ == "__main__":
    main()
