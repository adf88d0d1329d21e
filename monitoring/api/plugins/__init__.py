"""One module a subject: what the page shows about it and its JSON twin (read-only; beside all arrows).

A plugin has a `name` (its address is /api/<name>), the `parameters` it understands, and `read(query)`; one that can
also show a single thing has `find(key)` (/api/<name>/<key>), which raises NotFoundError.
"""

from typing import Protocol, runtime_checkable

from monitoring.api.query import Document, Query


class Plugin(Protocol):
    """One subject."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...
    def read(self, query: Query) -> Document: ...


@runtime_checkable
class Finder(Protocol):
    """A subject whose things have keys."""

    def find(self, key: str) -> Document: ...
