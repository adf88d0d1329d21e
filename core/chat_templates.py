"""Rows to token ids and label mask: the one implementation that gates, trainer, judge and server use (all arrows).

Reads    tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and
         chat_template.jinja of a model folder       Writes   nothing
Format   ids int32, mask bool over ids: True where the model is trained (the assistant's text and its end token)
Errors   ModelError when the folder has no usable tokenizer; TemplateRefusedError when one chat cannot be rendered
Effects  none; an encoder may be shared by threads

Ids and mask equal transformers' `apply_chat_template(..., return_assistant_tokens_mask=True)` with the same template,
except that the text of a special token inside a message stays text. Templates that are not prefix-stable, or that
write thoughts nobody dropped, are replaced by our ChatML with the same special tokens (`template_source`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any  # tokenizers of two libraries; JSON documents

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from core.byte_lengths import ByteLengths, Span
from core.chatml import TurnMarks, chatml_template, render_chatml
from core.errors import ModelError
from core.pieces import ID_BYTES, Pieces, as_bytes
from core.template_text import Message, TemplateRefusedError, unmark, unused_characters
from core.tokenizer_files import SpecialTokens, TokenizerFiles

if TYPE_CHECKING:
    from core.jinja_sandbox import ChatTemplate

_VERSION = "labels.v1"  # part of every fingerprint: change it when ids or masks change
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
)
_MAX_TURNS = 512  # every answer of a template without marks is rendered again with all that stands before it
TrainingRow = Mapping[str, Any]  # {"messages": [...]} or {"text": ...}


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One row in tokens. Shapes: ids_T int32, mask_T bool."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A chat as text, the character spans that are trained, and where special tokens' texts are only text."""

    text: str
    spans: list[Span]
    quoted: list[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows on their way through `encode_rows`. `ids`: of chats without quotes; None where the text is `unread`."""

    rows: Sequence[TrainingRow]
    rendered: Sequence[_Rendered | None]
    ids: Sequence[bytes | None]
    unread: list[str]


class ChatEncoder:
    """A tokenizer with the chat template that training and serving use.

    Attributes:
        template: the Jinja2 text in use, a checkpoint's chat_template.jinja.
        template_source: "own", "replaced" (see `replaced_reason`) or "configured" (the model has none).
        eos_ids: ids that end an answer.
    """

    def __init__(self, files: TokenizerFiles, configured: str | None = None) -> None:
        self._tokenizer = files.tokenizer
        self._special: SpecialTokens = files.special
        self._eos_extra = files.eos_ids
        doc = json.loads(files.tokenizer.to_str())
        self._bytes = ByteLengths.of(files.tokenizer, doc)
        self._pieces = Pieces.of(files.tokenizer, doc) if self._bytes is not None else None
        self.template_source = "own"
        self.replaced_reason: str | None = None
        self.template = self._choose_template(files.template, configured)
        self._chatml = next((marks for marks in self._marks() if chatml_template(marks) == self.template), None)

    @classmethod
    def from_folder(cls, folder: Path, configured: str | None = None) -> "ChatEncoder":
        """Read a model folder.

        Args:
            folder: in the transformers layout, with tokenizer.json.
            configured: template for models that bring none; None is our ChatML.

        Raises:
            ModelError: no tokenizer.json, a damaged one, or one without any end token.
        """
        return cls(TokenizerFiles.read(folder), configured)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, configured: str | None = None) -> "ChatEncoder":  # of two libraries
        """Take a `tokenizers.Tokenizer` or a transformers fast tokenizer. Raises ModelError."""
        return cls(TokenizerFiles.of(tokenizer), configured)

    # -- the template ---------------------------------------------------------------------------------------------

    def _marks(self) -> Iterator[TurnMarks]:
        return (TurnMarks(start, end, self._special.leading_bos) for start, end in self._special.turn_pairs())

    def _choose_template(self, own: str | None, configured: str | None) -> str:
        source = own if own is not None else configured
        if own is None:
            self.template_source = "configured"
        ours = [chatml_template(marks) for marks in self._marks()]
        if source is not None and source not in ours:
            try:
                reason = self._objection(self._compile(source))
            except TemplateRefusedError as error:
                reason = error.message
            if reason is not None:
                self.template_source, self.replaced_reason, source = "replaced", reason, None
        if source is None and not ours:
            fix = "name an eos_token in tokenizer_config.json"
            raise ModelError("the tokenizer has no token that could end an answer", fix=fix)
        return ours[0] if source is None else source

    def _compile(self, source: str) -> "ChatTemplate":
        from core.jinja_sandbox import ChatTemplate  # loads jinja2, which our own template does without

        return ChatTemplate(source, self._special.by_name)

    @cached_property
    def _compiled(self) -> "ChatTemplate":
        return self._compile(self.template)

    def _objection(self, template: "ChatTemplate") -> str | None:
        """Say why a template cannot be trained with: it must only ever append, and write no thoughts of its own."""
        last = ""
        for turn in range(1, len(_PROBE) + 1):
            asks = turn % 2 == 1
            text = template.render(_PROBE[:turn], add_generation_prompt=asks)
            if not text.startswith(last):
                return f"not prefix-stable: turn {turn} changes what was rendered before it"
            if "<think" in text:
                return "it writes <think> blocks that no row holds"
            if not asks and not text[len(last) :].startswith(_PROBE[turn - 1]["content"]):
                return f"not prefix-stable: the answer of turn {turn} does not follow the generation prompt"
            last = text
        return None if all(m["content"] in last for m in _PROBE) else "it leaves messages out"

    # -- rendering ------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Render a chat as text. Raises TemplateRefusedError."""
        if self._chatml is not None:
            return render_chatml(self._chatml, messages, add_generation_prompt)[0]
        return self._compiled.render(messages, add_generation_prompt=add_generation_prompt)

    def _render_for_training(self, messages: Sequence[Message]) -> _Rendered:
        if self._special.hides_in(messages):
            return self._render_quoted(messages)
        if self._chatml is not None:
            return _Rendered(*render_chatml(self._chatml, messages), [])
        if self._compiled.has_marks:
            opens, closes = unused_characters(messages, 2)
            marked = self._compiled.render(messages, add_generation_prompt=False, opens=opens, closes=closes)
            return _Rendered(*unmark(marked, opens, closes, ""))
        return self._render_by_prefixes(messages)

    def _render_quoted(self, messages: Sequence[Message], prompt: bool = False) -> _Rendered:
        """Render with every special token's text inside a message broken by a mark, and remember where."""
        opens, closes, breaks = unused_characters(messages, 3)
        broken = [{**m, "content": self._special.break_in(m["content"], breaks)} for m in messages]
        if prompt or self._compiled.has_marks:
            marks = {"opens": opens, "closes": closes}
            marked = self._compiled.render(broken, add_generation_prompt=prompt, **marks)
            return _Rendered(*unmark(marked, opens, closes, breaks))
        plain = self._render_by_prefixes(broken)
        pieces = list(plain.text)
        for start, end in reversed(plain.spans):  # marks go in from the back, so that earlier spans stay valid
            pieces.insert(end, closes)
            pieces.insert(start, opens)
        return _Rendered(*unmark("".join(pieces), opens, closes, breaks))

    def _render_by_prefixes(self, messages: Sequence[Message]) -> _Rendered:
        """Find the trained spans of a template without generation marks: what each answer adds to its prompt."""
        if len(messages) > _MAX_TURNS:
            raise TemplateRefusedError(f"more than {_MAX_TURNS} turns, and the chat template marks no answers")
        text = self._compiled.render(messages, add_generation_prompt=False)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._compiled.render(messages[:turn], add_generation_prompt=True)
            until = text
            if turn + 1 < len(messages):
                until = self._compiled.render(messages[: turn + 1], add_generation_prompt=False)
            if not (text.startswith(until) and until.startswith(prompt)):
                raise TemplateRefusedError(f"the chat template is not prefix-stable at message {turn + 1}")
            spans.append((len(prompt), len(self._special.without_space_after_end(until))))
        return _Rendered(text, spans, [])

    # -- encoding -------------------------------------------------------------------------------------------------

    def encode_row(self, row: TrainingRow) -> Encoded:
        """Encode one training row. Raises TemplateRefusedError."""
        return self.encode_rows([row])[0]

    def encode_rows(self, rows: Sequence[TrainingRow]) -> list[Encoded]:
        """Encode many rows at once, on all cores. Raises TemplateRefusedError for the first bad one."""
        prepared = self.prepare(rows)
        return self.label(prepared, self.tokenize(prepared))

    def prepare(self, rows: Sequence[TrainingRow]) -> Prepared:
        """The first part of `encode_rows`: what the tokenizer is to read. Raises TemplateRefusedError."""
        rendered = [self._render_row(row) for row in rows]
        return Prepared(rows, rendered, *self._known([one.text for one in rendered if one and not one.quoted]))

    def _known(self, texts: Sequence[str]) -> tuple[Sequence[bytes | None], list[str]]:
        """The ids of texts that need no tokenizer, and the texts that need it, where None stands."""
        ids = [None] * len(texts) if self._pieces is None else self._pieces.encode(texts)
        return ids, [text for text, known in zip(texts, ids, strict=True) if known is None]

    def tokenize(self, prepared: Prepared) -> list[Encoding]:
        """The second part, which takes long; it leaves Python's lock to other threads."""
        # without offsets where the bytes of the tokens tell them: a fifth faster
        encode: Any = self._tokenizer.encode_batch if self._bytes is None else self._tokenizer.encode_batch_fast
        return list(encode(prepared.unread, add_special_tokens=False))

    def label(self, prepared: Prepared, encodings: Sequence[Encoding]) -> list[Encoded]:
        """The last part: ids and masks."""
        plain = [one for one in prepared.rendered if one and not one.quoted]
        labelled = iter(self._label_many(plain, prepared.ids, encodings))
        done: list[Encoded] = []
        for row, one in zip(prepared.rows, prepared.rendered, strict=True):
            if one is None:
                done.append(self._encode_text(row["text"]))
            elif one.quoted:
                done.append(self._label(one, self._tokenizer.encode(one.text, add_special_tokens=False)))
            else:
                done.append(next(labelled))
        return done

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself; the text of a control token counts as one."""
        known, unread = self._known(texts)
        read = iter(self._tokenizer.encode_batch_fast(unread, add_special_tokens=False))
        return [len(next(read)) if ids is None else len(ids) // ID_BYTES for ids in known]

    def least_tokens(self, row: TrainingRow) -> int:
        """A row has at least so many tokens: tells a hopelessly long one without encoding it."""
        if self._bytes is None:
            return 0
        texts = [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]
        return sum(self._bytes.least_tokens(text) for text in texts)

    def _label_many(
        self, rendered: Sequence[_Rendered], known: Sequence[bytes | None], encodings: Sequence[Encoding]
    ) -> list[Encoded]:
        """Labels of chats: their ids as far as known, and the encodings of the others."""
        if self._bytes is None or not rendered:
            return [self._label(one, encoding) for one, encoding in zip(rendered, encodings, strict=True)]
        read = iter(encodings)
        parts = [as_bytes(next(read).ids) if ids is None else ids for ids in known]
        counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) // ID_BYTES
        ids = np.frombuffer(bytearray().join(parts), dtype=np.int32)  # a bytearray: may be written to
        spans = [[span for span in one.spans if span[0] < span[1]] for one in rendered]
        mask, covered = self._bytes.masks([one.text for one in rendered], spans, ids, counts)
        stops = counts.cumsum().tolist()
        done: list[Encoded] = []
        for one, start, stop, good in zip(rendered, [0, *stops], stops, covered.tolist(), strict=False):
            if good:
                done.append(Encoded(ids[start:stop], mask[start:stop]))
            else:
                done.append(self._label(one, self._tokenizer.encode(one.text, add_special_tokens=False)))
        return done

    def _render_row(self, row: TrainingRow) -> _Rendered | None:
        messages = row.get("messages")
        return None if messages is None else self._render_for_training(messages)

    def _label(self, rendered: _Rendered, encoding: Encoding) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, end in rendered.spans:
            if start >= end:
                continue
            first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
            if first is None:
                break
            mask[first : last + 1 if last else len(ids)] = True
        if rendered.quoted:
            return self._unquote(rendered, encoding, ids, mask)
        return Encoded(ids, mask)

    def _unquote(
        self, rendered: _Rendered, encoding: Encoding, ids: NDArray[np.int32], mask: NDArray[np.bool_]
    ) -> Encoded:
        """Replace control tokens that stand where a message only quotes one by the tokens of their text."""
        quoted = np.array(rendered.quoted)
        new_ids: list[int] = []
        new_mask: list[bool] = []
        for index, (start, end) in enumerate(encoding.offsets):
            piece = [int(ids[index])]
            if piece[0] in self._special.ids and bool(((quoted >= start) & (quoted < end)).any()):
                piece = self._plain_ids(rendered.text[start:end])
            new_ids += piece
            new_mask += [bool(mask[index])] * len(piece)
        return Encoded(np.array(new_ids, dtype=np.int32), np.array(new_mask, dtype=np.bool_))

    @cached_property
    def _plain(self) -> Tokenizer:
        """A twin of the tokenizer that knows no special tokens."""
        twin: Tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        twin.encode_special_tokens = True
        return twin

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._special.ids.isdisjoint(ids):
            return ids
        if len(text) == 1:
            raise TemplateRefusedError(f"the tokenizer cannot write {text!r} as text")
        return self._plain_ids(text[:1]) + self._plain_ids(text[1:])

    def _encode_text(self, text: str) -> Encoded:
        """A completion row: every token is trained, the end token too."""
        hidden = self._special.hides_in([{"content": text}])
        ids = (self._plain if hidden else self._tokenizer).encode(text, add_special_tokens=True).ids
        if self._special.eos_id is not None and (not ids or ids[-1] != self._special.eos_id):
            ids = [*ids, self._special.eos_id]
        return Encoded(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Encode a chat up to where the answer begins. Raises TemplateRefusedError."""
        if not self._special.hides_in(messages):
            ids: list[int] = self._tokenizer.encode(self.render(messages, True), add_special_tokens=False).ids
            return ids
        rendered = self._render_quoted(messages, prompt=True)
        encoding = self._tokenizer.encode(rendered.text, add_special_tokens=False)
        return [int(index) for index in self._label(rendered, encoding).ids]

    def encode_text(self, text: str) -> list[int]:
        """Encode the prompt of a plain completion: as a completion row begins, without the end token."""
        hidden = self._special.hides_in([{"content": text}])
        ids: list[int] = (self._plain if hidden else self._tokenizer).encode(text, add_special_tokens=True).ids
        return ids[:-1] if ids and ids[-1] == self._special.eos_id else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids to text."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def quotes_special(self, row: TrainingRow) -> bool:
        """Does a text of this row spell a control token? It is encoded as text; people should know."""
        return self._special.hides_in(row.get("messages") or [{"content": row["text"]}])

    def pieces(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """Runs of text and whether they are trained, for a person to look at."""
        edges = np.flatnonzero(np.diff(encoded.mask)) + 1
        runs = np.split(np.arange(len(encoded.ids)), edges)
        return [(self.decode(encoded.ids[run].tolist(), False), bool(encoded.mask[run[0]])) for run in runs if len(run)]

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer: those the model names, and the one with which the template closes a turn."""
        probe = self.encode_row({"messages": _PROBE})
        trained = probe.ids[probe.mask]
        ends = {int(trained[-1])} & self._special.ids if len(trained) else set()
        named = set() if self._special.eos_id is None else {self._special.eos_id}
        return self._eos_extra | ends | named

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json spells it."""
        text: str = self._tokenizer.to_str()
        return text

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    @cached_property
    def _identity(self) -> bytes:
        parts = [_VERSION, self._tokenizer.to_str(), self.template, json.dumps(self._special.by_name, sort_keys=True)]
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def fingerprint(self, max_length: int) -> str:
        """64 hex characters that change when the ids or masks of any row could change."""
        return hashlib.sha256(self._identity + str(max_length).encode()).hexdigest()
