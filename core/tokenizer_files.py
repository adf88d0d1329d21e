"""What a model folder says about its tokenizer (all arrows, through chat_templates).

Reads    tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
         chat_template.jinja; each bounded in size         Writes   nothing
Errors   ModelError when tokenizer.json is missing or damaged; a damaged side file is an error too, never skipped
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any  # tokenizers of two libraries; JSON documents

from tokenizers import Tokenizer

from core.atomic import read_json
from core.errors import DropforgeError, ModelError

_TEMPLATE_MAX_BYTES = 1 << 20
_KNOWN_PAIRS = (("<|im_start|>", "<|im_end|>"), ("<start_of_turn>", "<end_of_turn>"))
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class SpecialTokens:
    """The control tokens of a tokenizer.

    Attributes:
        by_name: {"eos_token": "</s>", ...}, what a template may ask for.
        ids: every id that is a control token, by its text.
        leading_bos: text of the token that the tokenizer puts before every text by itself, or "".
    """

    by_name: Mapping[str, str]
    by_text: Mapping[str, int]
    vocabulary: Mapping[str, int]
    leading_bos: str

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset(self.by_text.values())

    @cached_property
    def eos_id(self) -> int | None:
        return self.vocabulary.get(self.by_name.get("eos_token", ""))

    def turn_pairs(self) -> Iterator[tuple[str, str]]:
        """How a chat's turns may begin and end with this vocabulary, the best first."""
        for start, end in _KNOWN_PAIRS:
            if start in self.by_text and end in self.by_text:
                yield start, end
        if self.eos_id is not None:  # no markers in the vocabulary: plain text, closed by the real end token
            yield "### ", self.by_name["eos_token"]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.by_text, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _first_characters(self) -> str:
        return "".join(sorted({text[0] for text in self.by_text}))

    def hides_in(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Is a control token's text quoted in one of these messages?"""
        firsts = self._first_characters
        for message in messages:
            content = message["content"]
            for first in firsts:
                if first in content and self._pattern.search(content):
                    return True
        return False

    def count_in(self, text: str) -> int:
        """How many control tokens' texts stand in a text."""
        return sum(1 for _ in self._pattern.finditer(text))

    def break_in(self, text: str, mark: str) -> str:
        """Put a mark behind the first character of every control token's text."""
        return self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)

    def without_space_after_end(self, text: str) -> str:
        """Cut the white space that follows a final control token: it is written by the template, not by the model."""
        cut = text.rstrip()
        return cut if any(cut.endswith(end) for end in self.by_text) else text


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer and what stands beside it."""

    tokenizer: Tokenizer
    special: SpecialTokens
    template: str | None
    eos_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFiles":
        """Read a model folder in the transformers layout. Raises ModelError."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError("there is no tokenizer.json", where=str(folder), fix="copy the model's tokenizer there")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises plain Exception
            raise ModelError(f"tokenizer.json cannot be read: {error}", where=str(file)) from error
        config = _optional(folder / "tokenizer_config.json")
        names = _optional(folder / "special_tokens_map.json") | config
        found = [_optional(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
        return cls._build(tokenizer, _texts(names), _template_of(folder, config), _ids(*found))

    @classmethod
    def of(cls, tokenizer: Any) -> "TokenizerFiles":  # tokenizers.Tokenizer or a transformers fast tokenizer
        """Take a tokenizer that is already loaded. Raises ModelError for anything else."""
        if isinstance(tokenizer, Tokenizer):
            return cls._build(tokenizer, _guessed_names(tokenizer), None, frozenset())
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"{type(tokenizer).__name__} is no tokenizers.Tokenizer and no transformers fast tokenizer",
                fix="load it with AutoTokenizer.from_pretrained(..., use_fast=True)",
            )
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        return cls._build(backend, _texts(tokenizer.special_tokens_map), template, frozenset())

    @classmethod
    def _build(
        cls, source: Tokenizer, names: Mapping[str, str], template: str | None, eos_ids: frozenset[int]
    ) -> "TokenizerFiles":
        tokenizer = Tokenizer.from_str(source.to_str())  # our own: the caller's may be truncating or padding
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special and t.content}
        named = {text: tokenizer.token_to_id(text) for text in names.values()}
        vocabulary = {text: index for text, index in named.items() if index is not None} | special
        first = tokenizer.encode("a", add_special_tokens=True).tokens[:1]
        leads = first[0] if first and first[0] in special and first[0] == names.get("bos_token") else ""
        return cls(tokenizer, SpecialTokens(names, special, vocabulary, leads), template, eos_ids)


def _optional(file: Path) -> dict[str, Any]:  # a JSON object
    if not file.is_file():
        return {}
    try:
        return read_json(file)
    except DropforgeError as error:
        raise ModelError(f"{file.name} cannot be read: {error.message}", where=str(file)) from error


def _texts(names: Mapping[str, Any]) -> dict[str, str]:  # JSON values: a text, or {"content": text}
    texts = {name: names.get(name) for name in _NAMES}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in texts.items()}
    return {name: str(value) for name, value in texts.items() if value}


def _ids(*values: int | list[int] | None) -> frozenset[int]:
    found: set[int] = set()
    for value in values:
        found |= {value} if isinstance(value, int) else set(value or ())
    return frozenset(found)


def _template_of(folder: Path, config: Mapping[str, Any]) -> str | None:  # a JSON object
    file = folder / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > _TEMPLATE_MAX_BYTES:
            raise ModelError("the chat template is over 1 MiB", where=str(file))
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _guessed_names(tokenizer: Tokenizer) -> dict[str, str]:
    """A bare tokenizer names no end token: take the first usual one that it has."""
    usual = ("<|im_end|>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "[SEP]")
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    end = next((text for text in usual if text in special), None)
    start = next((text for text in ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]") if text in special), None)
    return {name: text for name, text in (("eos_token", end), ("bos_token", start)) if text}
