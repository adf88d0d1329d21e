"""Where data comes from: sidecars, generators and their versions (arrow: intake).

Reads    NAME.meta.json, at most 1 MiB      Writes   nothing
Format   config/schemas/sidecar.schema.json; a generator is written `id@version`
Errors   SidecarError with the code of the contract (sidecar_mismatch, locked_field)
"""

import difflib
import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any  # a sidecar is JSON

from core.atomic import parse_written_json, read_json
from core.errors import DataError, JsonError
from core.paths import schema_file

if TYPE_CHECKING:  # loaded when a sidecar is there to be checked: 0.07 s
    import jsonschema

GENERATORS = ("discrimination", "syllo_local", "syllo_api", "curriculum", "manual", "binary_local")
MANUAL = "manual"
_LINEAGE_KEYS = ("generator_id", "generator_version", "generated_at", "params", "source", "extra")
_MAX_BYTES = 1 << 20
_SIMILAR = 0.8  # share of equal letters from which an unknown key looks like a known one misspelt
_LONGEST_KEY, _MOST_KEYS = 60, 200  # letters of a key, keys of a sidecar that are looked at for misspelling
_NEVER = (
    "locked base_model model_architecture model_name model_path trust_remote_code profile hyperparams trainer "
    "validation inbox run epochs learning_rate batch_size gradient_accumulation max_length fp_precision seed"
)
LOCKED_NAMES = frozenset(_NEVER.split())


class SidecarError(DataError):
    """A sidecar is damaged, claims what is not true, or reaches for settings."""

    code = 1010
    slug = "sidecar_mismatch"

    def __init__(self, slug: str, message: str, *, field: str | None = None, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.slug = slug
        self.field = field


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What the producer says about a file. Without a sidecar everything is empty and the generator is `manual`."""

    doc: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generator(self) -> str:
        """`id@version`."""
        return f"{self.generator_id}@{self.doc.get('generator_version') or '0'}"

    @property
    def generator_id(self) -> str:
        return str(self.doc.get("generator_id") or MANUAL)

    @property
    def spec(self) -> str | None:
        return self.doc.get("spec")

    @property
    def priority(self) -> str | None:
        return self.doc.get("priority")

    @property
    def columns(self) -> dict[str, str] | None:
        return self.doc.get("columns")

    def misspelt_keys(self) -> dict[str, str]:
        """Keys that nobody reads and that look like one that is read -> that one. Other unknown keys are the user's."""
        known = _known_keys()
        lacking = [key for key in known if key not in self.doc]
        found: dict[str, str] = {}
        for key in [str(key) for key in self.doc if key not in known][:_MOST_KEYS]:
            near = difflib.get_close_matches(key.lower(), lacking, 1, _SIMILAR) if len(key) <= _LONGEST_KEY else []
            if near:
                found[key] = near[0]
        return found


@cache
def _schema() -> "jsonschema.Draft202012Validator":
    import jsonschema

    return jsonschema.Draft202012Validator(read_json(schema_file("sidecar")))


@cache
def _known_keys() -> tuple[str, ...]:
    return tuple(read_json(schema_file("sidecar"))["properties"])


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar; a missing one is an empty one.

    Raises:
        SidecarError: not a regular file, over 1 MiB, not strict JSON, of wrong types, or naming a locked setting.
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Sidecar()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the data's own name leaves no room for the suffix
            return Sidecar()
        if path.is_symlink():
            raise SidecarError("sidecar_mismatch", "the sidecar is a symlink", fix="copy the file itself") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        fix = "put the file itself there, or remove it"
        raise SidecarError("sidecar_mismatch", "the sidecar is not a regular file", fix=fix)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise SidecarError("sidecar_mismatch", "the sidecar is over 1 MiB", fix="move the bulk into another file")
    try:
        return check_sidecar(parse_written_json(data.removeprefix(b"\xef\xbb\xbf"), "the sidecar"))
    except JsonError as error:
        raise SidecarError("sidecar_mismatch", f"{error.where}: {error.message}", fix="write plain JSON") from error


def check_sidecar(doc: object) -> Sidecar:
    """Check a parsed sidecar. Raises SidecarError."""
    if not isinstance(doc, Mapping):
        raise SidecarError("sidecar_mismatch", "the sidecar is not a JSON object", field="$", fix="write {...}")
    for key in doc:
        name = str(key)
        if name in LOCKED_NAMES or name.partition(".")[0] in LOCKED_NAMES:
            raise SidecarError(
                "locked_field",
                f"a sidecar cannot set {name!r} (to {str(doc[key])[:60]!r})",
                field=f"$.{name}",
                fix="remove the key; settings live in config.json",
            )
    error = next(iter(sorted(_schema().iter_errors(doc), key=lambda e: list(map(str, e.path)))), None)
    if error is not None:
        where = error.json_path.removeprefix("$.")
        raise SidecarError(
            "sidecar_mismatch",
            f"the sidecar's {where} is refused: {error.message[:200]}",
            field=error.json_path,
            fix="correct that value, or remove its key",
        )
    return Sidecar(dict(doc))


def check_claims(sidecar: Sidecar, *, sha256: str, size_bytes: int, rows: int) -> None:
    """Hold a sidecar to what it states. The data is the truth. Raises SidecarError naming both values."""
    doc = sidecar.doc
    found = {"bytes": size_bytes, "sha256": sha256, "example_count": rows, "rows": rows}
    for key, value in found.items():
        stated = doc.get(key)
        stated = stated.lower() if isinstance(stated, str) else stated
        if stated is not None and stated != value:
            unit = "rows" if key == "example_count" else key
            raise SidecarError(
                "sidecar_mismatch",
                f"the sidecar says {stated} {unit}, found {value}",
                field=f"$.{key}",
                fix="copy the whole file again, or correct the sidecar",
            )


def check_generator(sidecar: Sidecar, *, allow_unknown: bool) -> None:
    """Refuse a generator that is not registered, unless the operator allows it. Raises SidecarError."""
    name = sidecar.generator_id
    if name in GENERATORS or allow_unknown:
        return
    near = difflib.get_close_matches(name, GENERATORS, 1)
    raise SidecarError(
        "sidecar_mismatch",
        f"generator {name!r} is not registered",
        field="$.generator_id",
        fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(GENERATORS)}",
    )


def with_late_lineage(sidecar: Sidecar, late: Sidecar) -> dict[str, Any]:
    """A sidecar that comes after the claim can add lineage only, and only what was not said before."""
    return {**{key: late.doc[key] for key in _LINEAGE_KEYS if key in late.doc}, **sidecar.doc}


def merged(sidecar: Sidecar, additions: Mapping[str, Any]) -> dict[str, Any]:
    """The producer's part with the daemon's part on top."""
    return {**sidecar.doc, **additions}
