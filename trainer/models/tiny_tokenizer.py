"""The tokenizer of the embedded base model `dropforge-tiny`: what every arrow of
`inbox -> intake -> queue -> trainer -> checkpoints -> judge -> publisher -> inference server` counts tokens with when
no other model is configured.

Reads    tiny_corpus.txt beside this module (our own text, shipped with the package)
Writes   tokenizer.json, tokenizer_config.json, chat_template.jinja in the folder it is given
Format   byte-level BPE of the `tokenizers` library, in the layout transformers reads; the same bytes on every machine
Errors   StorageError (4xxx) when the folder cannot be written
Used by  `dropforge init` as `python -m trainer.models.tiny_tokenizer DIR` (torch stays out of it), trainer.models.tiny
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from core.atomic import storage_error, write_bytes
from core.chatml import TurnMarks, chatml_template
from core.errors import DropforgeError

CORPUS = Path(__file__).with_name("tiny_corpus.txt")
VOCABULARY = 1024  # 28 % of the model's weights; English then costs about 2 characters a token (1.95 on GSM8K)
PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def train_tokenizer(corpus: str) -> Tokenizer:
    """Train the BPE merges on a text.

    Digits are split one by one before the byte level, circled ones too: a run of them would otherwise become one
    token, and a model cannot shift bits that it never sees apart.

    Args:
        corpus: English text that also holds the circled digits.

    Returns:
        A tokenizer of `VOCABULARY` tokens (fewer when the text is short); decoding an encoded text gives it back.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte has a token: no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer=trainer)
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write the embedded tokenizer into `folder`, which is made when missing.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    tokenizer = train_tokenizer(CORPUS.read_text(encoding="utf-8"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,  # transformers would otherwise drop the space before a full stop
        "model_max_length": 2048,
    }
    write_bytes(folder / "chat_template.jinja", chatml_template(TurnMarks(TURN_START, TURN_END)).encode())
    write_bytes(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tokenizer into the folder named on the command line; returns an exit code of the contract."""
    parser = argparse.ArgumentParser(prog="python -m trainer.models.tiny_tokenizer", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where tokenizer.json and its companions go")
    folder = parser.parse_args(argv).folder
    try:
        write_tokenizer(folder)
    except DropforgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
