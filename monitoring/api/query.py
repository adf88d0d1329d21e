"""What a request asks for, checked: the monitor's only untrusted input besides the Host header (beside all arrows).

Errors   UsageError (HTTP 400) naming the parameter
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias  # a JSON document has any shape; the contract decides

from core.errors import UsageError

Document: TypeAlias = dict[str, Any]
MAX_TEXT = 200


class Query:
    """The parameters of one request.

    Args:
        given: name and value as they came.
        known: the names this resource understands; another one is refused, so that a typing error is not ignored.
    """

    def __init__(self, given: Mapping[str, str], known: Iterable[str] = ()) -> None:
        self._given = given
        allowed = sorted(known)
        for name in given:
            if name not in allowed:
                fix = f"use {', '.join(allowed)}" if allowed else "leave the parameters out"
                raise UsageError(f"unknown parameter {name[:40]!r}", fix=fix)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number between `low` and `high`. Raises UsageError."""
        text = self._given.get(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18 and low <= int(text) <= high):
            raise UsageError(f"{name} must be a whole number from {low} to {high}", where=name, fix=f"{name}={low}")
        return int(text)

    def text(self, name: str) -> str:
        """A short text, '' when it was not given. Raises UsageError."""
        value = self._given.get(name, "")
        if len(value) > MAX_TEXT or "\0" in value:
            raise UsageError(f"{name} is longer than {MAX_TEXT} characters or holds NUL", where=name)
        return value
