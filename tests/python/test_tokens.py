from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny
from emmet.errors import ModelError
from emmet.tokens import Prompt, encode_prompts, pad_rows

TOKENIZERS = {
    f"{kind}-bos={bos}-eos={eos}-{side}": tiny.tiny_tokenizer(kind=kind, bos=bos, eos=eos, padding_side=side)
    for kind, bos, eos, side in product(("byte_level", "metaspace"), (False, True), (False, True), ("left", "right"))
}
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def encode(
    tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str, target: str | None = None
) -> Prompt:
    span = (len(before), len(before + subject))
    return encode_prompts(tokenizer, [before + subject + after], [span], [target])[0]


def spelling(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> list[bytes]:
    """The bytes of each token, from the vocabulary alone; a special token has none."""
    is_metaspace = tokenizer.convert_tokens_to_ids("<0x00>") != tokenizer.unk_token_id
    spelled = []
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        if token in tiny.SPECIAL_TOKENS:
            spelled.append(b"")
        elif token.startswith("<0x") and is_metaspace:
            spelled.append(bytes([int(token[3:5], 16)]))
        elif is_metaspace:
            spelled.append(token.replace("▁", " ").encode())
        else:
            spelled.append(bytes(BYTE_OF[character] for character in token))
    return spelled


def token_with_byte(spelled: list[bytes], byte: int) -> int:
    """The token that holds a byte of the joined spelling."""
    ends = list(accumulate(map(len, spelled)))
    return next(position for position, end in enumerate(ends) if end > byte)


def expected(
    tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...], before: str, subject: str, after: str, target: str
) -> tuple[int, range]:
    """Positions of the subject's last token and of the target, by counting the bytes that the tokens spell."""
    spelled = spelling(tokenizer, ids)
    text = before + subject + after
    full = b"".join(spelled)
    prepended = len(full) - len(full.removeprefix(b" ")) if not text.startswith(" ") else 0  # by a metaspace tokenizer
    last_byte = prepended + len((before + subject).rstrip().encode()) - 1
    first_target_byte = prepended + len(text.encode())
    target_start = token_with_byte(spelled, first_target_byte) if target else len(ids)
    return token_with_byte(spelled, last_byte), range(target_start, len(ids))


PARTS = {
    "start": ("", "Danielle Darrieux", " is a native speaker of", "French"),
    "middle": ("The mother tongue of ", "Danielle Darrieux", " is", "English"),
    "end": ("The person who was born as ", "Danielle Darrieux", "", "speaks French"),
    "alone": ("", "Paris", "", "is in France"),
    "one letter": ("", "X", "", "Y"),
    "prefixed": ("Therefore, yes. The mother tongue of ", "Edwin", " is", "English"),
    "second occurrence": ("Paris, or ", "Paris", " of France, is in", "Rome"),
    "first occurrence": ("", "Paris", ", or Paris of France, is in", "Rome"),
    "inside a word": ("The ", "Spa", "niards come from", "Spain"),
    "merged punctuation": ("The capital of the ", "U.S.", ", is", "Madrid"),
    "accent": ("The sister of ", "Zoë", " is", "José"),
    "emoji": ("The meaning of ", "🇫🇷😀", " is", "👩‍👩‍👧"),
    "emoji first": ("", "😀", "", "😀"),
    "Japanese": ("", "東京", "の国は", "日本"),
    "trailing space in the subject": ("The capital of ", "France ", "is", "Paris"),
    "trailing space in the text": ("The capital of ", "France", " is ", "Paris"),
    "leading space in the target": ("The capital of ", "France", " is", " Paris"),
    "newline": ("Q: Who?\nA: ", "Edwin", "\n", "speaks"),
    "no target": ("", "Danielle Darrieux", " is a", ""),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_positions_are_those_of_the_bytes(tokenizer: PreTrainedTokenizerFast, parts: tuple[str, str, str, str]) -> None:
    prompt = encode(tokenizer, *parts)
    assert (prompt.subject, prompt.target) == expected(tokenizer, prompt.ids, *parts)


TEXT = st.text(
    st.one_of(st.sampled_from("ab .,é😀 日\n"), st.characters(exclude_categories=["Cs"], exclude_characters="▁<"))
)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    before=TEXT,
    subject=TEXT.filter(str.strip),
    after=TEXT,
    target=TEXT.filter(str.strip),
)
def test_positions_are_those_of_the_bytes_of_any_text(
    name: str, before: str, subject: str, after: str, target: str
) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = encode(tokenizer, before, subject, after, target)
    assert (prompt.subject, prompt.target) == expected(tokenizer, prompt.ids, before, subject, after, target)


def test_tokens_of_a_plain_example() -> None:
    tokenizer = tiny.tiny_tokenizer(bos=True, eos=True)
    prompt = encode(tokenizer, "The capital of ", "France", " is", "Paris")
    tokens = tokenizer.convert_ids_to_tokens(list(prompt.ids))
    assert tokens == ["<s>", "The", "Ġcapital", "Ġof", "ĠF", "r", "an", "ce", "Ġis", "ĠParis"]
    assert prompt.subject == 7
    assert prompt.target == range(9, 10)


def test_text_and_target_are_tokenised_together_without_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = encode(tokenizer, "The capital of ", "France", " is", "Paris")
    whole = tokenizer("The capital of France is Paris")["input_ids"]
    assert list(prompt.ids) == [token for token in whole if token != tokenizer.eos_token_id]


def test_a_space_separates_text_and_target_exactly_once() -> None:
    tokenizer = tiny.tiny_tokenizer()
    texts = ["It is", "It is ", "It is\n", "It is"]
    targets = ["Paris", "Paris", "Paris", " Paris"]
    decoded = [tokenizer.decode(prompt.ids) for prompt in encode_prompts(tokenizer, texts, targets=targets)]
    assert decoded == ["It is Paris", "It is Paris", "It is\nParis", "It is Paris"]


def test_a_token_across_text_and_target_belongs_to_the_target() -> None:
    tokenizer = tiny.tiny_tokenizer()
    (prompt,) = encode_prompts(tokenizer, ["The capital of France is "], targets=["Paris"])
    assert tokenizer.convert_ids_to_tokens([prompt.ids[position] for position in prompt.target]) == ["ĠParis"]


def test_whole_text_is_the_subject_by_default(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["The mother tongue of Zoë is", "😀"]
    prompts = encode_prompts(tokenizer, texts, targets=["French", None])
    assert prompts == encode_prompts(tokenizer, texts, [(0, len(text)) for text in texts], ["French", None])
    assert prompts[0].subject == prompts[0].target.start - 1
    assert prompts[1].subject == len(prompts[1].ids) - 1


def test_batch_equals_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["Paris is", "The mother tongue of Danielle Darrieux is"]
    spans = [(0, 5), (21, 38)]
    batch = encode_prompts(tokenizer, texts, spans, ["big", "English"])
    assert batch == [
        encode(tokenizer, "", "Paris", " is", "big"),
        encode(tokenizer, "The mother tongue of ", "Danielle Darrieux", " is", "English"),
    ]
    assert encode_prompts(tokenizer, []) == []


def test_left_over_padding_and_truncation_settings_are_ignored() -> None:
    tokenizer = tiny.tiny_tokenizer()
    before = encode_prompts(tokenizer, ["Paris is in the country of", "Rome"])
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert encode_prompts(tokenizer, ["Paris is in the country of", "Rome"]) == before


def test_offsets_without_the_leading_space() -> None:
    trimmed = tiny.tiny_tokenizer()
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert trimmed("a Paris", return_offsets_mapping=True)["offset_mapping"][-1] == (2, 7)
    for parts in PARTS.values():
        assert encode(trimmed, *parts) == encode(tiny.tiny_tokenizer(), *parts)


def test_characters_that_the_normalizer_composes() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as in Qwen; offsets then cover "e" but not the accent
    assert encode(tokenizer, "The sister of ", "Zoe\u0308", " is", "A") == encode(
        tokenizer, "The sister of ", "Zo\u00eb", " is", "A"
    )


def handmade(
    vocabulary: list[str], merges: list[tuple[str, str]] = (), *, removed: str = "\0"
) -> PreTrainedTokenizerFast:
    """A tokenizer without special tokens, whose normalizer removes a string."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=list(merges)))
    backend.normalizer = normalizers.Replace(removed, "")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_subject_merged_with_the_target_is_refused() -> None:
    tokenizer = handmade(["a", "b", " ", "a ", "a b"], [("a", " "), ("a ", "b")])
    with pytest.raises(ModelError, match=r"^the subject 'a' has no token of its own in 'a': .*$"):
        encode_prompts(tokenizer, ["a"], targets=["b"])


def test_dropped_subject_is_refused() -> None:
    tokenizer = handmade(["a", "b", " "], removed="b")
    with pytest.raises(ModelError, match=r"^the subject 'b' has no token of its own in 'a b': .*$"):
        encode_prompts(tokenizer, ["a b"], [(2, 3)])


def test_dropped_target_is_refused() -> None:
    tokenizer = handmade(["a", "b"], removed=" b")
    with pytest.raises(ModelError, match=r"^the tokenizer drops the target 'b' after 'a': .*$"):
        encode_prompts(tokenizer, ["a"], targets=["b"])


def test_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^expected a fast tokenizer, got ByT5Tokenizer: .*$"):
        encode_prompts(ByT5Tokenizer(), ["a"])


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_pad_rows(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    input_ids, attention_mask = pad_rows([(5, 6, 7), (8,)], side)
    assert torch.equal(input_ids, torch.tensor(ids))
    assert torch.equal(attention_mask, torch.tensor(mask))
