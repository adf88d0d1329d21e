"""Rows from a JSON array, from CSV and TSV, and from plain text (arrow: intake).

Format   JSON array: one array of objects; CSV, TSV: RFC 4180 with a header line, every value a text; plain text: blocks
         between blank lines, each one row {"text": ...}
Errors   FormatError when the rest of the file cannot be read; what one row holds is its RowProblem
"""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.formats.bytes_in import file_chunks
from core.formats.records import RecordReader
from core.formats.rows import LATIN1_FIX, MAX_ROW_BYTES, FormatError, Notes, RowProblem, Value
from core.formats.strict_json import CR_ALONE, CR_FIX, is_cut_off, parse_row, plain_words

csv.field_size_limit(MAX_ROW_BYTES)
_DELIMITERS = ",;\t|"
_NO_ARRAY = RowProblem("bad_json", "the file is no JSON array", fix="use .jsonl for lines")
_ODD_ARRAY = "the array is incomplete or has odd text in it"
_ODD_ARRAY_FIX = "write one array: [, objects with a comma between two of them, ]"
_TOO_LARGE = RowProblem("too_large", f"a row over {MAX_ROW_BYTES >> 20} MiB", fix="split the row")


def decoded(path: Path, notes: Notes) -> Iterator[str]:
    """The text of a file, piece by piece. Raises FormatError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read, line = 0, 1
    for chunk in file_chunks(path, notes):
        try:
            yield decoder.decode(chunk)
        except UnicodeDecodeError as error:
            at = read + len(chunk) - len(error.object) + error.start  # what it looked at may begin before the chunk
            raise _not_utf8(at, line + error.object.count(b"\n", 0, error.start)) from error
        read += len(chunk)
        line += chunk.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(read, line) from error


def _not_utf8(at: int, line: int) -> FormatError:
    return FormatError(RowProblem("bad_encoding", f"not UTF-8 at byte {at}", fix=LATIN1_FIX), line)


def text_lines(path: Path, notes: Notes) -> Iterator[str]:
    """Lines with their ends, split at LF only, each bounded. Raises FormatError."""
    rest, number = "", 1
    for piece in decoded(path, notes):
        head, *lines = (rest + piece).split("\n")
        rest = head
        for line in lines:
            yield rest + "\n"
            rest = line
        number += len(lines)
        if len(rest) > MAX_ROW_BYTES:
            raise FormatError(_TOO_LARGE, number)
    if rest:
        yield rest


class JsonArrayReader(RecordReader):
    """One JSON array of objects, element by element."""

    def _records(self, notes: Notes) -> Iterator[tuple[int, Value, int]]:
        decoder, buffer, opened, more, comma = json.JSONDecoder(), "", False, False, False
        line, column = 1, 1  # where the buffer begins
        for piece in self._pieces(notes):
            buffer += piece
            while True:
                body = buffer.lstrip(" \t\r\n")
                line, column = _moved(line, column, buffer[: len(buffer) - len(body)])
                buffer = body
                if not opened and buffer:
                    if buffer[0] != "[":
                        raise FormatError(_NO_ARRAY, line)
                    opened, buffer, column = True, buffer[1:], column + 1
                elif opened and more and buffer[:1] == ",":
                    more, comma, buffer, column = False, True, buffer[1:], column + 1
                elif opened and not comma and buffer[:1] == "]" and not buffer[1:].strip():
                    if piece == "":
                        return
                    break
                elif not opened or not buffer or more:
                    break
                else:
                    end = _element_end(decoder, buffer, line, last=piece == "")
                    if end is None:
                        break
                    text, buffer = buffer[:end], buffer[end:]
                    at, value = _placed(parse_row(text.encode("utf-8", "surrogatepass")), text, line, column)
                    yield at, value, end
                    line, column = _moved(line, column, text)
                    more, comma = True, False
        raise FormatError(RowProblem("bad_json", _ODD_ARRAY, fix=_ODD_ARRAY_FIX), line)

    def _pieces(self, notes: Notes) -> Iterator[str]:
        yield from decoded(self._path, notes)
        yield ""  # the end: what is incomplete now stays incomplete


def _moved(line: int, column: int, text: str) -> tuple[int, int]:
    """Where the text ends that begins there."""
    ends = text.count("\n")
    return line + ends, len(text) - text.rindex("\n") if ends else column + len(text)


def _placed(value: Value, text: str, line: int, column: int) -> tuple[int, Value]:
    """An element and its line: where it begins, or, with the column, where in it the refused thing stands."""
    if not isinstance(value, RowProblem) or value.column is None:
        return line, value
    at, its_column = _moved(line, column, text[: value.column - 1])
    return at, replace(value, column=its_column)


def _element_end(decoder: json.JSONDecoder, buffer: str, line: int, *, last: bool) -> int | None:
    """Where the first element, which begins on `line`, ends; None when it may go on in the next piece.

    Raises:
        FormatError: it is not JSON.
    """
    try:
        end = decoder.raw_decode(buffer)[1]
    except json.JSONDecodeError as error:
        if last or len(buffer) > MAX_ROW_BYTES:
            raise FormatError(_odd_element(buffer, error), line + error.lineno - 1) from error
        return None
    except (ValueError, RecursionError) as error:
        problem = RowProblem("bad_json", f"an element of the array is not JSON: {error}", fix=_ODD_ARRAY_FIX)
        raise FormatError(problem, line) from error
    return end if last or end < len(buffer) else None


def _odd_element(buffer: str, error: json.JSONDecodeError) -> RowProblem:
    if is_cut_off(buffer, error):
        return RowProblem("bad_json", "the array is incomplete: was the transfer cut?", fix="copy the whole file again")
    fix = "remove the trailing comma" if buffer[0] == "]" else _ODD_ARRAY_FIX
    return RowProblem("bad_json", f"an element of the array is not JSON: {plain_words(error)}", fix=fix)


class CsvReader(RecordReader):
    """Comma- or tab-separated rows under a header line."""

    def __init__(self, path: Path, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter

    def _records(self, notes: Notes) -> Iterator[tuple[int, Value, int]]:
        rows = csv.reader(text_lines(self._path, notes), delimiter=self._delimiter, strict=True)
        names: list[str] | None = None
        begins = 1
        try:
            for fields in rows:
                line, begins = begins, rows.line_num + 1
                if not fields:
                    notes.forgive("blank_line", line)
                elif names is None:
                    names = self._header(fields, line)
                else:
                    yield line, self._row(names, fields), sum(map(len, fields))
        except csv.Error as error:
            raise FormatError(_odd_csv(str(error)), begins) from error  # the parser stands where it gave up

    def _header(self, fields: list[str], line: int) -> list[str]:
        other = next((mark for mark in _DELIMITERS if mark != self._delimiter and mark in fields[0]), None)
        if len(fields) == 1 and other is not None:
            message = f"the header line is separated by {other!r}, not by {self._delimiter!r}"
            fix = f"write it with {self._delimiter!r}" + (", or name it NAME.tsv" if other == "\t" else "")
            raise FormatError(RowProblem("bad_json", message, fix=fix), line)
        if len(set(fields)) < len(fields) or not all(name.strip() for name in fields):
            message = f"the header line has empty or repeated names: {', '.join(map(repr, fields))[:100]}"
            raise FormatError(RowProblem("bad_json", message, fix="name every column once in the first line"), line)
        return fields

    @staticmethod
    def _row(names: list[str], fields: list[str]) -> Value:
        if len(fields) != len(names):
            return RowProblem(
                "bad_json", f"{len(fields)} fields under {len(names)} column names", fix="quote the field"
            )
        if any("\0" in field for field in fields):
            return RowProblem("bad_json", "U+0000 in a text", fix="remove the NUL character")
        return dict(zip(names, fields, strict=True))


def _odd_csv(words: str) -> RowProblem:
    fix = "put the whole field into quotes, and write each quote inside it twice"
    if "new-line character" in words:  # its words are for whoever opened the file
        return RowProblem("bad_json", CR_ALONE, fix=CR_FIX)
    if "unexpected end" in words:
        message = "not valid CSV: a quote opens in this row and is never closed"
        return RowProblem("bad_json", message, fix=f"close it, or {fix}")
    if "field limit" in words:
        message = (
            f"not valid CSV: a field of this row is over {MAX_ROW_BYTES >> 20} MiB; perhaps its quote is not closed"
        )
        return RowProblem("bad_json", message, fix=f"split the row, close the quote, or {fix}")
    return RowProblem("bad_json", f"not valid CSV: {words}", fix=fix)


class TextReader(RecordReader):
    """Blocks of text between blank lines."""

    def _records(self, notes: Notes) -> Iterator[tuple[int, Value, int]]:
        block: list[str] = []
        size = begins = 0
        for number, line in enumerate(text_lines(self._path, notes), 1):
            if line.strip():
                begins = begins or number
                size += len(line)
                block.append(line)
                if size > MAX_ROW_BYTES:
                    raise FormatError(_TOO_LARGE, begins)
            elif block:
                yield begins, self._block(block), size
                block, size, begins = [], 0, 0
        if block:
            yield begins, self._block(block), size

    @staticmethod
    def _block(lines: list[str]) -> Value:
        text = "".join(lines).replace("\r\n", "\n").strip("\n")
        if "\0" in text:
            return RowProblem("bad_json", "U+0000 in a text", fix="remove the NUL character")
        return {"text": text}
