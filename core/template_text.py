"""What chat templates are given and what their texts are taken apart by, without the renderer (all arrows).

Apart from `core.jinja_sandbox`, which takes a tenth of a second to load, because most models need no renderer: see
`core.chatml`.
"""

import re
from collections.abc import Mapping, Sequence

from core.errors import ModelError

_NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))  # never text: Unicode keeps them for such use

Message = Mapping[str, str]


class TemplateRefusedError(ModelError):
    """A chat template cannot render these messages."""

    code = 2010
    slug = "template_refused"


def unused_characters(messages: Sequence[Message], wanted: int) -> list[str]:
    """Characters that stand in none of these messages, to mark places with. Raises TemplateRefusedError."""
    text = "".join(message["content"] for message in messages)
    free = _NONCHARACTERS[:wanted]
    if any(char in text for char in free):
        free = tuple(char for char in _NONCHARACTERS if char not in text)[:wanted]
    if len(free) < wanted:
        raise TemplateRefusedError("a message holds all of Unicode's 32 noncharacters")
    return list(free)


def unmark(marked: str, opens: str, closes: str, breaks: str) -> tuple[str, list[tuple[int, int]], list[int]]:
    """Take the marks out of a rendered chat.

    Returns:
        The text, the (start, end) spans between `opens` and `closes`, and the places before `breaks`.
    """
    spans: list[tuple[int, int]] = []
    quoted: list[int] = []
    length = begun = 0
    parts = re.split(f"([{opens}{closes}{breaks}])", marked)
    for part in parts:
        if part == opens:
            begun = length
        elif part == closes:
            spans.append((begun, length))
        elif breaks and part == breaks:
            quoted.append(length - 1)  # the break stands behind the special token's first character
        else:
            length += len(part)
    return "".join(parts[::2]), spans, quoted
