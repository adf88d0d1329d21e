"""The embedded base model: what transformers and our own torch-free code read from its folder is the same thing."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from core.chat_templates import ChatEncoder
from trainer.models.tiny import WEIGHTS_FILE, make_tiny
from trainer.models.tiny_tokenizer import SPECIAL_TOKENS, TOKENIZER_FILES, VOCABULARY, main

TEXTS = [
    "Compute: leftshift ①⓪①① ①⓪",
    "leftshift ①⓪①① ①⓪ = ①⓪①①⓪⓪",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72",
    "It isn't . so ,  two  spaces\n\n\tand a tab",
    "Grüße, 你好, 🙂, e\u0301, \u0000, ㉈ ௰ ½",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dropforge-tiny"
    make_tiny(folder, seed=0)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights_only(tiny: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path / "again", seed=0)
    make_tiny(tmp_path / "other", seed=1)
    assert digests(tmp_path / "again") == digests(tiny)
    changed = {name for name, digest in digests(tmp_path / "other").items() if digest != digests(tiny)[name]}
    assert changed == {WEIGHTS_FILE}


def test_making_the_model_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    make_tiny(tmp_path / "m", seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_transformers_loads_the_folder_as_an_ordinary_model(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert 200_000 <= weights <= 250_000
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    answers = GenerationConfig.from_pretrained(tiny)
    assert answers.eos_token_id == SPECIAL_TOKENS.index("<|im_end|>")
    assert not answers.do_sample


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_and_tokenizers_give_the_same_ids_and_decoding_gives_the_text_back(tiny: Path, text: str) -> None:
    ours = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(tiny)
    ids = ours.encode(text).ids
    assert theirs(text).input_ids == ids
    assert ours.decode(ids) == theirs.decode(ids) == text


def test_every_circled_digit_is_one_token_of_its_own_and_decimal_digits_are_split(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    for run in ("①", "⓪", "①⓪①①⓪⓪①", "48211"):
        ids = tokenizer.encode(run).ids
        assert len(ids) == len(run)
        assert [tokenizer.decode([token]) for token in ids] == list(run)


def test_english_costs_fewer_tokens_than_bytes(tiny: Path, shared_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCABULARY
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    questions = [json.loads(line)["question"] for line in lines]
    tokens = sum(len(tokenizer.encode(question).ids) for question in questions)
    assert sum(map(len, questions)) / tokens > 2.0


def test_the_template_marks_exactly_the_assistants_words_and_the_end_of_its_turn(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(trained) == "Hello.<|im_end|>See you.<|im_end|>"


def test_the_prompt_of_a_chat_opens_its_rendering_with_the_answer(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    whole = tokenizer.apply_chat_template(CHAT[:3], tokenize=False)
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert whole == prompt + "Hello.<|im_end|>\n"


def test_a_folder_with_only_the_tokenizer_is_completed(tiny: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(TOKENIZER_FILES)
    make_tiny(tmp_path, seed=0)
    assert digests(tmp_path) == digests(tiny)


def test_the_tokenizer_needs_no_torch_and_does_not_depend_on_threads_or_hashing(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.models.tiny_tokenizer import main;"
        "sys.exit(main(sys.argv[1:]) or ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    for threads in ("1", "4"):
        folder = tmp_path / threads
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False, env=env).returncode == 0
        assert digests(folder) == {name: digests(tiny)[name] for name in TOKENIZER_FILES}


def test_an_unwritable_folder_ends_with_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "below")]) == 4
    assert "below" in capsys.readouterr().err


def test_the_gates_and_the_server_read_the_same_template_as_transformers(tiny: Path) -> None:
    encoder = ChatEncoder.from_folder(tiny)
    encoded = encoder.encode_row({"messages": CHAT})
    theirs = AutoTokenizer.from_pretrained(tiny).apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoder.template_source == "own"
    assert list(encoded.ids) == theirs["input_ids"]
    assert [int(on) for on in encoded.mask] == theirs["assistant_masks"]
    assert encoder.eos_ids == {SPECIAL_TOKENS.index("<|im_end|>")}
