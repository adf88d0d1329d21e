"""Tokens that hold a part of a character are told apart, and every token's place in the text is right."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from core.chat_templates import ChatEncoder
from inference.answers import Shape
from inference.generation import TokenScore
from inference.protocol import chat_request, completion_request
from inference.ticket import Piece, PromptScores
from inference.token_names import Places, TokenNames
from trainer.models.tiny import make_tiny

TEXT = "é a 😀 b"
END = "</s>"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, seed=0)
    return ChatEncoder.from_folder(folder)


@pytest.fixture(scope="module")
def byte_fallback() -> ChatEncoder:
    """As of Llama 2: words begin with a space that the first of a text loses; unknown characters become bytes."""
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END, *single], show_progress=False)
    tokenizer.train_from_iterator(["say hello to a cat and a hat"] * 9, trainer)
    doc = json.loads(tokenizer.to_str())
    doc["added_tokens"] = [token for token in doc["added_tokens"] if token["content"] == END]
    tokenizer = Tokenizer.from_str(json.dumps(doc))
    spaces = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(list(spaces))
    return ChatEncoder.from_tokenizer(tokenizer)


def places(encoder: ChatEncoder, ids: list[int]) -> list[int]:
    asked = Places(TokenNames(encoder))
    return [asked.next(token) for token in ids]


def test_parts_of_a_character_are_named_by_their_bytes_and_stand_where_it_stands(byte_level: ChatEncoder) -> None:
    ids, names = byte_level.encode_text(TEXT), TokenNames(byte_level)
    assert [names.name(token) for token in ids] == [
        r"bytes:\xc3", r"bytes:\xa9", " a", " ", r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", " b"
    ]  # fmt: skip
    assert places(byte_level, ids) == [0, 0, 1, 3, 4, 4, 4, 4, 5]
    assert b"".join(map(names.stands_for, ids)).decode() == TEXT
    everything = [names.name(token) for token in range(byte_level.vocabulary_size)]
    assert len(set(everything)) == byte_level.vocabulary_size


def test_places_are_right_in_text_that_is_broken_in_any_way(byte_level: ChatEncoder) -> None:
    names, luck = TokenNames(byte_level), random.Random(1)
    for _ in range(100):
        ids = luck.choices(range(byte_level.vocabulary_size), k=30)
        text = byte_level.decode(ids)
        for token, place in zip(ids, places(byte_level, ids), strict=True):
            shown = byte_level.decode([token])
            assert text.startswith(shown, place) or (names.name(token).startswith("bytes:") and place < len(text))


def test_vocabularies_with_bytes_for_unknown_characters_are_told_apart_too(byte_fallback: ChatEncoder) -> None:
    ids, names = byte_fallback.encode_text("say hello é😀 a hat"), TokenNames(byte_fallback)
    ids = [*ids[:2], *byte_fallback.eos_ids, *ids[2:]]
    named = [names.name(token) for token in ids]
    assert named[:4] == [" say", " hello", END, " "]
    assert named[4:10] == [rf"bytes:\x{byte:02x}" for byte in "é😀".encode()]
    text = byte_fallback.decode(ids)
    found = places(byte_fallback, ids)
    assert [text[place : place + 2] for place in found[4:]] == ["é😀"] * 2 + ["😀 "] * 4 + [" a", " h"]
    assert found[:3] == [0, 3, 9]


def scored(token: int, *alternatives: int) -> tuple[int, TokenScore]:
    """A token with -9 nats among alternatives of -1, -2, ..."""
    top = tuple((other, -1.0 - place) for place, other in enumerate(alternatives))
    return token, TokenScore(-9.0, top)


def shape(encoder: ChatEncoder, asked: Any, prompt: list[int]) -> Shape:
    slot = SimpleNamespace(id="1-aaaaaaaaaaaa", encoder=encoder, names=TokenNames(encoder))
    ticket = SimpleNamespace(prompt=0, prompt_ids=prompt)
    answer: Any = SimpleNamespace(slot=slot, tickets=[ticket], prompt_tokens=len(prompt), cached_tokens=0)
    return Shape(asked, answer)


def test_no_alternative_of_a_completion_is_lost_and_the_drawn_token_has_its_own_value(byte_level: ChatEncoder) -> None:
    ids = byte_level.encode_text(TEXT)
    parts = [ids[0], ids[1], *ids[4:8]]
    asked = completion_request({"prompt": TEXT, "logprobs": 5, "echo": True, "max_tokens": 2})
    echoed = (None, *(scored(token, *parts[:5])[1] for token in ids[1:]))
    piece = Piece(0, "é", (scored(ids[0], *parts[1:]), scored(ids[1], *parts[:5])), "length", 2)
    made = shape(byte_level, asked, ids).whole({0: piece}, {0: PromptScores(0, echoed)})
    (choice,) = made["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == TEXT + "é"
    assert logprobs["text_offset"] == [0, 0, 1, 3, 4, 4, 4, 4, 5, 7, 7]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][-2] == {
        r"bytes:\xa9": -1.0, r"bytes:\xf0": -2.0, r"bytes:\x9f": -3.0, r"bytes:\x98": -4.0, r"bytes:\x80": -5.0,
        r"bytes:\xc3": -9.0,
    }  # fmt: skip
    assert logprobs["top_logprobs"][-1][r"bytes:\xa9"] == -2.0  # as its score among the others says
    assert logprobs["token_logprobs"] == [None, *[-9.0] * 10]


def test_places_go_on_from_chunk_to_chunk_though_a_character_waits_for_its_rest(byte_level: ChatEncoder) -> None:
    ids = byte_level.encode_text("aé b")
    asked = completion_request({"prompt": "x", "logprobs": 0, "stream": True})
    stream = shape(byte_level, asked, [1])
    shown = ["a", "", "é", " b"]
    chunks = [stream.chunks(Piece(0, text, (scored(token),), None, 1)) for text, token in zip(shown, ids, strict=True)]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for (chunk,) in chunks] == [[0], [1], [1], [2]]


def test_the_bytes_of_a_chats_tokens_make_up_its_text(byte_level: ChatEncoder) -> None:
    ids = byte_level.encode_text(TEXT)
    asked = chat_request({"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1})
    piece = Piece(0, TEXT, tuple(scored(token, token) for token in ids), "stop", len(ids))
    (choice,) = shape(byte_level, asked, [1]).whole({0: piece}, {})["choices"]
    content = choice["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == choice["message"]["content"] == TEXT
    assert [token["top_logprobs"][0]["bytes"] for token in content] == [token["bytes"] for token in content]
