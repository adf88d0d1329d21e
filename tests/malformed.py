"""Makes malformed files, each with its good twin, and says which line must be blamed with which code.

A case is a fault put into one line of a good file. The twin is the file without the fault: it must be accepted.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROWS = 20


@dataclass(frozen=True, slots=True)
class Case:
    """One malformed file. `line` is None when the whole file is at fault; any of `codes` is right."""

    name: str
    data: bytes
    twin: bytes
    codes: frozenset[str]
    line: int | None


def chat(text: str = "an answer", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": text}]
    return {"messages": messages, **more}


def dumps(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


GOOD = dumps(chat())
LINES = [dumps(chat(f"answer {i}")) for i in range(ROWS)]


ROW = GOOD.decode()
_SYNTAX: dict[str, str] = {
    "trailing comma": ROW[:-1] + ",}",
    "comma in list": ROW.replace("}]", "},]"),
    "single quotes": ROW.replace('"', "'"),
    "no quotes round key": ROW.replace('"messages"', "messages"),
    "missing colon": ROW.replace('"messages":', '"messages"'),
    "missing comma": ROW.replace('", "content"', '" "content"'),
    "two objects": ROW + ROW,
    "two objects and a comma": ROW + "," + ROW,
    "object and text": ROW + " x",
    "object and brace": ROW + "}",
    "array": f"[{ROW}]",
    "string": json.dumps(ROW),
    "number": "5",
    "null": "null",
    "true": "true",
    "comment": ROW + " // why",
    "block comment": "/* why */" + ROW,
    "hash comment": "# " + ROW,
    "python repr": str(chat()),
    "yaml": "messages: []",
    "html": "<html></html>",
    "csv": "a,b,c",
    "markdown fence": "```json",
    "opening brace": "{",
    "closing brace": "}",
    "empty string": '""',
    "lone quote": '"',
    "unclosed string": ROW[:-5],
    "unclosed list": ROW[:-2],
    "unclosed object": ROW[:-1],
    "NaN": ROW[:-1] + ', "id": NaN}',
    "Infinity": ROW[:-1] + ', "id": Infinity}',
    "minus Infinity": ROW[:-1] + ', "id": -Infinity}',
    "undefined": ROW[:-1] + ', "id": undefined}',
    "None": ROW[:-1] + ', "id": None}',
    "True": ROW[:-1] + ', "id": True}',
    "leading zero": ROW[:-1] + ', "id": 01}',
    "plus sign": ROW[:-1] + ', "id": +1}',
    "bare dot": ROW[:-1] + ', "id": .5}',
    "dot without digits": ROW[:-1] + ', "id": 1.}',
    "hex number": ROW[:-1] + ', "id": 0x10}',
    "underscore number": ROW[:-1] + ', "id": 1_000}',
    "double minus": ROW[:-1] + ', "id": --1}',
    "exponent without digits": ROW[:-1] + ', "id": 1e}',
    "1e400": ROW[:-1] + ', "metadata": {"x": 1e400}}',
    "minus 1e999": ROW[:-1] + ', "metadata": {"x": -1e999}}',
    "integer over 64 bits": ROW[:-1] + ', "id": 18446744073709551616}',
    "integer under 64 bits": ROW[:-1] + ', "id": -9223372036854775809}',
    "integer of 5,000 digits": ROW[:-1] + ', "id": ' + "9" * 5000 + "}",
    "duplicate key": ROW[:-1] + ', "messages": []}',
    "duplicate key after a space": ROW[:-1] + ', "messages" : []}',
    "duplicate key after a tab": ROW[:-1] + ', "messages"\t: []}',
    "duplicate key inside": ROW.replace('"role": "user"', '"role": "user", "role": "user"'),
    "duplicate key escaped": ROW[:-1] + ', "m\\u0065ssages": []}',
    "duplicate key in metadata": ROW[:-1] + ', "metadata": {"a": 1, "a": 1}}',
    "duplicate key and a decoy": ROW[:-1] + ', "id": "x\\u0022:", "metadata": {"a": 1, "a": 2}}',
    "duplicate empty key": ROW[:-1] + ', "metadata": {"": 1, "": 1}}',
    "lone high surrogate": ROW.replace("answer", "\\ud800"),
    "lone low surrogate": ROW.replace("answer", "\\udfff"),
    "swapped surrogates": ROW.replace("answer", "\\udc00\\ud800"),
    "surrogate before text": ROW.replace("answer", "\\ud83dx"),
    "surrogate in a key": ROW[:-1] + ', "metadata": {"\\ud800": 1}}',
    "NUL escaped": ROW.replace("answer", "an\\u0000swer"),
    "NUL escaped in a key": ROW[:-1] + ', "metadata": {"\\u0000": 1}}',
    "bad escape": ROW.replace("answer", "\\x41"),
    "short unicode escape": ROW.replace("answer", "\\u12"),
    "odd unicode escape": ROW.replace("answer", "\\uZZZZ"),
    "escaped quote at the end": ROW[:-4] + '\\"}]}',
    "depth 65": ROW[:-1] + ', "metadata": {"x": ' + "[" * 63 + "]" * 63 + "}}",
    "depth 1,000": ROW[:-1] + ', "metadata": ' + '{"x":' * 1000 + "1" + "}" * 1000 + "}",
    "depth 100,000": "[" * 100_000 + "]" * 100_000,
    "depth 100,000 open": '{"x":' * 100_000,
    "form feed between": ROW.replace(", ", ",\f", 1),
    "vertical tab between": ROW.replace(", ", ",\v", 1),
    "no-break space between": ROW.replace(", ", ",\u00a0", 1),
    "BOM inside": "\ufeff" + ROW,
    "zero width space": "\u200b" + ROW,
    "line separator between": ROW.replace(", ", ",\u2028", 1),
    "only a comma": ",",
    "only a bracket": "[",
}


def _syntax() -> Iterator[tuple[str, bytes]]:
    """Lines that are no strict JSON object."""
    for name, text in _SYNTAX.items():
        yield name, text.encode()
    for code in [*range(0x00, 0x0A), 0x0B, 0x0C, *range(0x0E, 0x20)]:
        yield f"raw control {code:#04x} in a text", GOOD.replace(b"an answer", b"an" + bytes([code]) + b"answer")
    for cut in range(1, len(GOOD) - 1):
        yield f"cut after {cut} bytes", GOOD[:cut]


def _encoding() -> Iterator[tuple[str, bytes]]:
    for name, raw in {
        "latin-1": "caf\u00e9".encode("latin-1"),
        "cp1252 quotes": "\u201cx\u201d".encode("cp1252"),
        "overlong slash": b"\xc0\xaf",
        "overlong NUL": b"\xc0\x80",
        "three byte overlong": b"\xe0\x80\xaf",
        "surrogate as bytes": b"\xed\xa0\x80",
        "beyond unicode": b"\xf4\x90\x80\x80",
        "five bytes": b"\xf8\x88\x80\x80\x80",
        "lone continuation": b"\x80",
        "cut sequence": b"\xe2\x82",
        "0xff": b"\xff",
        "0xfe": b"\xfe",
        "shift-jis": "\u65e5\u672c".encode("shift_jis"),
        "gbk": "\u4e2d\u6587".encode("gbk"),
        "koi8-r": "\u043f\u0440".encode("koi8_r"),
    }.items():
        yield f"{name} in a text", GOOD.replace(b"an answer", b"an " + raw + b" answer")
        yield f"{name} in a key", GOOD[:-1] + b', "metadata": {"' + raw + b'": 1}}'


def _turns(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


_USER, _ANSWER = ("user", "q"), ("assistant", "a")
_SCHEMA: dict[str, Any] = {
    "no messages": {},
    "messages misspelt": {"message": []},
    "messages in capitals": {"Messages": []},
    "messages null": {"messages": None},
    "messages a text": {"messages": "hi"},
    "messages an object": {"messages": {}},
    "messages empty": {"messages": []},
    "one message": _turns(_USER),
    "only an answer": _turns(_ANSWER),
    "only a system turn": _turns(("system", "s")),
    "system and user": _turns(("system", "s"), _USER),
    "system and answer": _turns(("system", "s"), _ANSWER),
    "answer first": _turns(_ANSWER, _USER),
    "ends with user": _turns(_USER, _ANSWER, _USER),
    "user twice": _turns(_USER, _USER, _ANSWER),
    "answer twice": _turns(_USER, _ANSWER, _ANSWER),
    "system in the middle": _turns(_USER, ("system", "s"), _ANSWER),
    "system twice": _turns(("system", "s"), ("system", "s"), _USER, _ANSWER),
    "system last": _turns(_USER, _ANSWER, ("system", "s")),
    "unknown role": _turns(("human", "q"), _ANSWER),
    "role gpt": _turns(_USER, ("gpt", "a")),
    "role tool": _turns(_USER, ("tool", "a")),
    "role in capitals": _turns(("User", "q"), _ANSWER),
    "role with a space": _turns(("user ", "q"), _ANSWER),
    "role empty": _turns(("", "q"), _ANSWER),
    "role null": _turns((None, "q"), _ANSWER),
    "role a number": _turns((1, "q"), _ANSWER),
    "role a list": _turns((["user"], "q"), _ANSWER),
    "answer empty": _turns(_USER, ("assistant", "")),
    "answer blank": _turns(_USER, ("assistant", " \t\n")),
    "answer of no-break spaces": _turns(_USER, ("assistant", "\u00a0\u2003")),
    "earlier answer empty": _turns(_USER, ("assistant", ""), _USER, _ANSWER),
    "a message is null": {"messages": [None, {"role": "assistant", "content": "a"}]},
    "a message is a text": {"messages": ["q", "a"]},
    "a message is a list": {"messages": [["user", "q"], ["assistant", "a"]]},
    "messages in messages": {"messages": [_turns(_USER, _ANSWER)]},
    "no content": {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
    "no role": {"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]},
    "text for content": {"messages": [{"role": "user", "text": "q"}, {"role": "assistant", "content": "a"}]},
    "sharegpt names": {"messages": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
    "name beside": {"messages": [chat()["messages"][0] | {"name": "x"}, chat()["messages"][1]]},
    "weight beside": {"messages": [chat()["messages"][0], chat()["messages"][1] | {"weight": 0}]},
    "completion row": {"text": "t"},
    "prompt row": {"prompt": "q", "completion": "a"},
    "alpaca row": {"instruction": "i", "output": "o"},
    "unknown key": chat(extra=1),
    "empty key": chat(**{"": 1}),
    "key with a space": {"messages ": chat()["messages"]},
    "proto": chat(__proto__={}),
    "locked": chat(locked={"base_model": "x"}),
    "source a number": chat(source=5),
    "source null": chat(source=None),
    "metadata a text": chat(metadata="x"),
    "metadata a list": chat(metadata=[]),
    "metadata null": chat(metadata=None),
    "id a list": chat(id=[]),
    "id an object": chat(id={}),
    "id null": chat(id=None),
    "id a fraction": chat(id=1.5),
    "id true": chat(id=True),
}


def _schema() -> Iterator[tuple[str, bytes]]:
    """Good JSON that is no chat_sft_v1 row."""
    rows = dict(_SCHEMA)
    for kind, value in {"null": None, "number": 3, "list": ["a"], "object": {"a": 1}, "true": True}.items():
        rows[f"user content {kind}"] = _turns(("user", value), _ANSWER)
        rows[f"answer {kind}"] = _turns(_USER, ("assistant", value))
        rows[f"system content {kind}"] = _turns(("system", value), _USER, _ANSWER)
    parts = [{"type": "text", "text": "q"}]
    rows["content in parts"] = _turns(("user", parts), _ANSWER)
    for name, row in rows.items():
        yield name, dumps(row)


def _whole_files() -> Iterator[tuple[str, bytes, str]]:
    good = b"\n".join(LINES) + b"\n"
    text = good.decode()
    yield "empty", b"", "empty"
    yield "one line end", b"\n", "empty"
    yield "blank lines", b" \n\t\n\r\n", "empty"
    yield "only a BOM", b"\xef\xbb\xbf", "empty"
    yield "only a BOM and a line end", b"\xef\xbb\xbf\n", "empty"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        yield f"the file in {encoding}", text.encode(encoding), "bad_encoding"


def cases() -> Iterator[Case]:
    """All cases; every second fault stands in the last line, which has no line end."""
    twin = b"\n".join([*LINES[:9], GOOD, *LINES[10:]]) + b"\n"
    faults = [(f"{name} [bad_json]", raw, {"bad_json"}) for name, raw in _syntax()]
    faults += [(f"{name} [encoding]", raw, {"bad_encoding"}) for name, raw in _encoding()]
    faults += [(f"{name} [schema]", raw, {"spec_mismatch"}) for name, raw in _schema()]
    for index, (name, raw, codes) in enumerate(faults):
        if index % 2:
            yield Case(name, b"\n".join([*LINES, raw]), twin, frozenset(codes), ROWS + 1)
        else:
            yield Case(name, b"\n".join([*LINES[:9], raw, *LINES[10:]]) + b"\n", twin, frozenset(codes), 10)
    for name, data, code in _whole_files():
        yield Case(f"{name} [file]", data, twin, frozenset({code}), None)
