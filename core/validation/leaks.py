"""Does a question give its answer away? (gates and background child, level deep).

Numbers are compared by value, as a reader takes them: "twelve" is 12 is 12.0, "twelve hundred" is 1,200.
"""

import re

from core.validation.rows import TrainingRow, normal_text

_MIN_CHARS = 8  # shorter words of an answer stand in many questions by chance
_MIN_NUMBER = 13  # and so do small numbers
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_UNITS = {word: value for value, word in enumerate(_SMALL)} | {w: 10 * t for t, w in enumerate(_TENS, 2)}
_STOPS = ",.;:!?"  # "twenty, one" are two numbers
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
_WORD = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+|[,.;:!?](?=\s)")


def leaks(row: TrainingRow) -> bool:
    """True when an answer stands, as a whole, in what was asked before it."""
    prompt: list[str] = []
    for message in row.get("messages", ()):
        if message["role"] == "assistant" and prompt and _stands_in(message["content"], " ".join(prompt)):
            return True
        prompt.append(message["content"])
    return False


def _stands_in(answer: str, prompt: str) -> bool:
    wanted = plain(answer)
    told = len(wanted) >= _MIN_CHARS or (wanted.isdecimal() and int(wanted) >= _MIN_NUMBER)
    return told and f" {wanted} " in f" {plain(prompt)} "


def plain(text: str) -> str:
    """Words in lower case without marks, numbers as digits."""
    done: list[str] = []
    spelt: list[str] = []
    for word in [*_WORD.findall(normal_text(text).casefold()), ""]:
        if word in _UNITS or (word in _SCALES and spelt) or (word == "and" and spelt and spelt[-1] in _SCALES):
            spelt.append(word)
            continue
        if spelt:
            done += _digits(spelt)
            spelt = []
        if word and word not in _STOPS:
            done.append(_number(word) if word[0].isdecimal() else word)
    return " ".join(done)


def _number(digits: str) -> str:
    digits = digits.replace(",", "")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits).lstrip("0") or "0"


def _digits(words: list[str]) -> list[str]:
    """Numerals in words as digits: `twenty one` is 21, `two hundred and five` 205; `one two` stays two numbers."""
    tail = ["and"] if words[-1] == "and" else []
    numbers: list[int] = []
    total = current = 0
    last = 0  # the value of the word before, 0 at the start of a number
    for word in words[: len(words) - len(tail)]:
        if word == "and":
            continue
        value = _UNITS.get(word)
        if value is None:
            scale = _SCALES[word]
            current = max(current, 1) * scale
            if scale > 100:
                total, current = total + current, 0
            last = scale
        elif last and (last >= 100 or (last >= 20 and last % 10 == 0 and 0 < value < 10)):
            current += value
            last = value
        elif last:
            numbers.append(total + current)
            total, current, last = 0, value, value or 1
        else:
            current, last = value, value or 1
    return [*map(str, [*numbers, total + current]), *tail]
