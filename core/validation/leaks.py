"""Does a question give its answer away? (gates and background child, level deep).

Numbers are compared by value, as a reader takes them: "twelve" is 12 is 12.0, "twelve hundred" is 1,200.
"""

import re

from core.validation.rows import TrainingRow, normal_text

_MOST_TURNS, _MOST_CHARS = 200, 100_000  # looked at, of a row and of a turn
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
    asked = " "
    for message in row.get("messages", ())[:_MOST_TURNS]:
        said = plain(message["content"][:_MOST_CHARS])
        if message["role"] == "assistant" and _tells(said) and f" {said} " in asked:
            return True
        asked += f"{said} "
    return False


def _tells(answer: str) -> bool:
    """Long enough not to stand in a question by chance."""
    return len(answer) >= _MIN_CHARS or (answer.isdecimal() and int(answer) >= _MIN_NUMBER)


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
            if scale == 100 and current >= 100:  # "hundred hundred" is no number
                numbers.append(total + current)
                total = current = 0
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
