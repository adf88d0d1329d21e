"""A table of pieces gives the tokenizer's own ids, for every character that it takes and every known way of cutting."""

import json
import re
from collections.abc import Sequence
from itertools import product
from typing import Any  # parts of tokenizers

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from core import pieces
from core.pieces import Pieces

SPECIAL = ["<|im_start|>", "<|im_end|>", "<a>", "<a><b>", "1<c>"]
WORDS = "the answer isn't 12345, it's 42. WE'LL see\n\n  über Ωmega Жук — “quoted” 1,000 × 3\t<|im_start|>\r\n don'T"
CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "one digit": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, pattern in zip(("qwen", "llama"), pieces._SPLITS, strict=True)
    },
}
KINDS = [
    "<b>",
    " ",
    "\n",
    "\r",
    "\t",
    "\x1c",
    "a",
    "S",
    "é",
    "Ж",
    "7",
    "'",
    "’",
    "—",
    ".",
    "<",
    "<|im_end|>",
    "<a>",
    "1<c>",
]


def make(cut: Any, normalizer: Any = None, special: Sequence[str] = SPECIAL) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> Pieces | None:
    return Pieces.of(tokenizer, json.loads(tokenizer.to_str()))


def check(pair: tuple[Tokenizer, Pieces], texts: list[str]) -> None:
    tokenizer, table = pair
    theirs = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ours, their in zip(texts, table.encode(texts), theirs, strict=True):
        assert ours is not None, repr(text)
        assert np.frombuffer(ours, dtype=np.int32).tolist() == their.ids, repr(text)


@pytest.fixture(autouse=True)
def however_much_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MOST_NEW_AT_FIRST", 1.0)
    monkeypatch.setattr(pieces, "_MOST_NEW", 1.0)


@pytest.fixture(scope="module", params=[*CUTS])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Pieces]:
    tokenizer = make(CUTS[request.param], normalizers.NFC())
    table = pieces_of(tokenizer)
    assert table is not None
    return tokenizer, table


def test_every_character_that_is_taken_is_cut_as_the_tokenizer_cuts_it(pair: tuple[Tokenizer, Pieces]) -> None:
    safe = [char for char in map(chr, range(0x10000)) if pieces._SAFE.fullmatch(char)]
    assert len(safe) > 1_000
    check(pair, [f"a{c}b {c} .{c}.  {c}1{c}\n{c}'{c}l{c}{c} \t{c}" for c in safe])


def test_three_characters_of_every_kind_are_cut_as_the_tokenizer_cuts_them(pair: tuple[Tokenizer, Pieces]) -> None:
    check(pair, ["".join(three) for three in product(KINDS, repeat=3)])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*KINDS, "'ll", "'T", "  ", "99", "ab", "!?"]), max_size=40).map("".join))
def test_texts_of_any_mixture_have_the_tokenizers_ids(pair: tuple[Tokenizer, Pieces], text: str) -> None:
    check(pair, [text, text])


def test_what_other_engines_may_class_otherwise_is_left_to_the_tokenizer(pair: tuple[Tokenizer, Pieces]) -> None:
    texts = ["日本", "a\u00a0b", "x²", "e\u0301", "long ſ", "\u2028", "🙂", "\u0660", "a" * 70_000]
    assert pair[1].encode(texts) == [None] * len(texts)


def test_of_mixed_texts_only_the_plain_ones_are_taken(pair: tuple[Tokenizer, Pieces]) -> None:
    assert [ids is None for ids in pair[1].encode(["plain", "日本", "", "end"])] == [False, True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"model": {"type": "Unigram"}},
        *({"added_tokens": [{"content": "<x>", "id": 1, **flags}]} for flags in ({"lstrip": True}, {"rstrip": True})),
        *({"added_tokens": [{"content": "x", "id": 1, key: True}]} for key in ("single_word", "normalized")),
    ],
)
def test_a_tokenizer_that_does_more_than_is_known_has_no_table(change: dict[str, object]) -> None:
    tokenizer = make(CUTS["gpt2"])
    doc = json.loads(tokenizer.to_str())
    assert Pieces.of(tokenizer, doc) is not None
    assert Pieces.of(tokenizer, doc | change) is None


def test_a_split_of_another_pattern_has_no_table() -> None:
    parts = [pre_tokenizers.Split(Regex(r"\w+|\s+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    assert pieces_of(make(pre_tokenizers.Sequence(parts))) is None


def test_added_words_that_are_no_control_tokens_are_found_too() -> None:
    tokenizer = make(CUTS["gpt2"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    table = pieces_of(tokenizer)
    assert table is not None
    check((tokenizer, table), ["so.<think>well</think> <think>", "<thin<think>"])


def test_the_table_stays_small_and_right_whatever_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_KNOWN_PIECES", 50)
    tokenizer = make(CUTS["gpt2"])
    table = pieces_of(tokenizer)
    assert table is not None
    for start in range(0, 2_000, 20):
        check(
            (tokenizer, table),
            [f"word{number} {number} <|im_end|> {'y' * 40}{number}" for number in range(start, start + 20)],
        )
        assert len(table._known) < 50 + 20 * 6
        assert all(len(word) <= 32 for word in table._known)


def test_text_of_ever_new_pieces_is_left_to_the_tokenizer_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    table = pieces_of(make(CUTS["gpt2"]))
    assert table is not None
    known = table.encode(["of common words " * 20] * 3)
    assert None not in known
    random = " ".join(str(number * 7919 % 10007) for number in range(60))
    before = len(table._known)
    assert table.encode(["of common words " * 20, random]) == [known[0], None]
    assert len(table._known) == before


def test_without_added_tokens_nothing_is_cut_off() -> None:
    tokenizer = make(CUTS["gpt2"], special=())
    table = pieces_of(tokenizer)
    assert table is not None
    check((tokenizer, table), [WORDS, "<|im_start|>user\n", *re.split("(,)", WORDS)])
