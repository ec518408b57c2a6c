"""What accumulating covariances adds to a forward pass: python bench/accumulation.py MODEL --corpus FILE

Both run in turn over the same batch of text, through the layers up to the deepest one whose keys are read: the bare
pass keeps nothing, the other adds the keys of 1 or of 8 layers. Beside what it took stands what the arithmetic makes
one expect: half of d_in² multiplications a key, over those with the weights of all these layers.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

import emmet
from emmet.architectures import Architecture, discover
from emmet.corpora import open_corpus
from emmet.hooks import frozen, on_input, stop_after
from emmet.loading import load
from measure import Figures, in_turn, parser, ratios, report

LENGTH = 512


def forward(arch: Architecture, ids: Tensor, deepest: int, moments: dict[int, emmet.Covariance]) -> None:
    with frozen(arch.model), torch.inference_mode(), ExitStack() as watching:
        for layer, moment in moments.items():
            watching.enter_context(on_input(arch.projection(layer).module, moment.add))
        with stop_after(arch.projection(deepest).module):
            arch.base(input_ids=ids, use_cache=False)


def weights_of(arch: Architecture, layer: int) -> int:
    return sum(weight.numel() for weight in arch.layers[layer].parameters() if weight.ndim == 2)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("model")
    options_of.add_argument("--corpus", type=Path, required=True)
    options_of.add_argument("--deepest", type=int, default=7)
    options_of.add_argument("--rows", type=int, default=8, help=f"sequences of {LENGTH} tokens in the batch")
    options_of.add_argument("--rounds", type=int, default=7)
    options = options_of.parse_args()

    model, tokenizer = load(options.model, device=options.device)
    arch = discover(model)
    sequences = open_corpus(options.corpus, seed=0).token_sequences(
        model, tokenizer, tokens=options.rows * LENGTH, length=LENGTH
    )
    ids = torch.stack(list(sequences)).to(options.device)
    rows = []
    for layers in ([options.deepest], list(range(options.deepest + 1))[-8:]):
        moments = {layer: emmet.Covariance(arch.projection(layer).d_in, options.device) for layer in layers}
        taken = in_turn(
            {
                "bare": lambda: forward(arch, ids, options.deepest, {}),
                "adding": lambda added=moments: forward(arch, ids, options.deepest, added),
            },
            options.rounds,
        )
        added = [100 * (ratio - 1) for ratio in ratios(taken["adding"], taken["bare"])]
        keys = sum(arch.projection(layer).d_in ** 2 for layer in layers) / 2
        passed = sum(weights_of(arch, layer) for layer in range(options.deepest + 1))
        rows.append(
            {
                "layers": len(layers),
                "added, %": Figures(added, ".1f"),
                "expected from the arithmetic, %": Figures([100 * keys / passed], ".1f"),
            }
        )
    report(f"Statistics up to layer {options.deepest}, {ids.numel()} tokens", rows, options.json)


if __name__ == "__main__":
    main()
