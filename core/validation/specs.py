"""Dataset specs: what a row of each kind looks like, as JSON Schema files (arrow: intake, layer 1).

Reads    config/specs/*.json of the package, then of the root (a user adds a spec by adding a file)
Format   JSON Schema of one row plus `kind`, `version` and, optionally, `columns`
Errors   ConfigError for a spec file that is damaged, of no known kind, or takes a built-in name
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any  # rows and schemas are JSON

import jsonschema_rs

from core.atomic import read_json
from core.errors import ConfigError, DropforgeError
from core.formats.rows import RowProblem
from core.paths import builtin_config

if TYPE_CHECKING:  # loaded to word an error only: 0.07 s
    import jsonschema

KINDS = {
    "chat": ("messages",),
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant"}
_MEND = "mend or remove it: a spec is one JSON Schema, see config/specs"
_JSON_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, eq=False)
class DatasetSpec:
    """One kind of row.

    Attributes:
        kind: how a row becomes what is trained, see `KINDS`.
        columns: our field names to the file's, unless a sidecar says otherwise.
    """

    name: str
    kind: str
    version: str
    schema: Mapping[str, Any]
    columns: Mapping[str, str]

    @cached_property
    def _fast(self) -> jsonschema_rs.Validator:
        return jsonschema_rs.validator_for(dict(self.schema))

    @cached_property
    def _worded(self) -> "jsonschema.Draft202012Validator":
        import jsonschema

        return jsonschema.Draft202012Validator(dict(self.schema))

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Does a row (columns already renamed) obey the schema?"""
        return self._fast.is_valid(row)

    def error_count(self, row: Mapping[str, Any]) -> int:
        """How far a row is from this spec."""
        return sum(1 for _ in self._worded.iter_errors(row))

    def explain(self, row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> RowProblem | None:
        """Word the most telling violation; None when the row fits.

        Args:
            row: with its columns already renamed.
            columns: what they were renamed by: a column that is named there and not in the row explains most.
        """
        errors = sorted(self._worded.iter_errors(row), key=lambda e: (e.validator != "required", len(e.path)))
        if not errors:
            return None
        return self._missing_column(row, columns or {}) or self._worded_problem(errors[0])

    def _missing_column(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> RowProblem | None:
        lacking = [key for key in self.schema.get("required", ()) if key in columns and key not in row]
        if not lacking:
            return None
        ours, theirs = lacking[0], columns[lacking[0]]
        if list(columns.values()).count(theirs) > 1:
            message, fix = (
                f"two fields are to come from the column {_short(theirs)}",
                "name another column for one of them",
            )
            return RowProblem("spec_mismatch", f"not {self.name}: {message}", None, f"$.{ours}", fix)
        who = "the spec" if columns is self.columns else "the sidecar"
        there = [key for key in row if key not in columns]
        near = difflib.get_close_matches(theirs[:200], there, 1)
        fix = f"did you mean {near[0]!r}?" if near else f'name a column of the row for {ours!r} in "columns"'
        message = f"{who} names a column {_short(theirs)} that the row lacks"
        return RowProblem("spec_mismatch", f"not {self.name}: {message}", None, f"$.{ours}", fix)

    def _worded_problem(self, error: "jsonschema.ValidationError") -> RowProblem:
        field = error.json_path
        rule: Any = error.validator_value  # any JSON, as the schema has it
        instance: Any = error.instance  # any JSON, as the row has it
        name = field.removeprefix("$.") if field != "$" else "the row"
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, Mapping) else []
        fix = None
        if error.validator == "required":
            missing = next(key for key in rule if key not in instance)
            extra = [key for key in instance if key not in known]
            message, field = f"{name} lacks {missing!r}", f"{field}.{missing}"
            fix = _missing_fix(missing, extra)
        elif error.validator == "additionalProperties":
            extra = next(key for key in instance if key not in known)
            near = difflib.get_close_matches(extra, known, 1)
            message, field = f"{name} has an unknown key {extra!r}", f"{field}.{extra}"
            fix = f"rename it to {near[0]!r}" if near else f"remove it; known are {', '.join(known)}"
        elif error.validator == "type":
            kind = _JSON_NAMES.get(type(error.instance), "a number")
            message, fix = f"{name} is {kind}, not {_article(rule)}", f"write {_article(rule)} there"
        elif error.validator == "enum":
            message = f"{name} is {_short(error.instance)}, not one of {', '.join(map(str, rule))}"
            fix = _enum_fix(instance, rule) or "write one of these"
        elif error.validator == "minItems" and instance:
            message = f"{name} has {len(instance)} of at least {rule} entries"
            fix = "a chat to train on ends with the assistant's turn: add it" if name == "messages" else "add more"
        elif error.validator in ("minItems", "minLength") or rule == "\\S":
            message, fix = f"{name} is empty", "fill it in, or remove the row"
        else:
            message = f"{name} breaks {error.validator} {_short(rule)}: {_short(error.instance)}"
            fix = "write it as the spec has it, or remove the row"
        return RowProblem("spec_mismatch", f"not {self.name}: {message}", None, field, fix)


def _missing_fix(missing: str, extra: list[str]) -> str:
    """Name the key that was meant, if one of the unknown keys can be it."""
    if missing == "messages" and "conversations" in extra:
        return "rows of conversations: use the spec sharegpt_v1"
    if missing in ("role", "content") and {"from", "value"} <= set(extra):
        return "rename 'from' to 'role' and 'value' to 'content', or use the spec sharegpt_v1 with 'conversations'"
    near = difflib.get_close_matches(missing, extra, 1) or (extra if len(extra) == 1 else [])
    return f"rename {near[0]!r} to {missing!r}" if near else f"add {missing!r}"


def _enum_fix(value: object, allowed: list[object]) -> str | None:
    """A role of another convention has a name here; anything else may be a typo."""
    known = [name for name in allowed if isinstance(name, str)]
    if not isinstance(value, str):
        return None
    role = _ROLES.get(value.lower())
    if role in known:
        return f"rename {value!r} to {role!r}; rows of from and value: use the spec sharegpt_v1"
    near = difflib.get_close_matches(value.lower(), known, 1)
    return f"rename it to {near[0]!r}" if near else f"use one of {', '.join(known)}"


def _article(kind: object) -> str:
    names = kind if isinstance(kind, list) else [kind]
    return " or ".join(f"{'an' if str(name)[0] in 'aeiou' else 'a'} {name}" for name in names)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_spec(file: Path) -> DatasetSpec:
    """Read one spec file. Raises ConfigError."""
    try:
        found = file.stat()
    except OSError as error:
        raise ConfigError(f"the spec cannot be read: {error.strerror}", where=str(file), fix=_MEND) from error
    return _read_spec(file, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _read_spec(file: Path, *_state: int) -> DatasetSpec:
    """With many small files, reading the specs for each was most of the gates' time. Read again when it changed."""
    try:
        doc = read_json(file)
        jsonschema_rs.validator_for(doc)
    except DropforgeError as error:
        words = f"the spec cannot be read: {error.message}"
        raise ConfigError(words, where=error.where or str(file), fix=_MEND) from error
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise ConfigError(
            f"the spec is no JSON Schema: {str(error).partition(chr(10))[0][:200]}", where=str(file)
        ) from error
    kind = doc.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"the spec's kind is {kind!r}", where=str(file), fix=f"use one of {', '.join(KINDS)}")
    required = set(doc.get("required", ()))
    if doc.get("type") != "object" or not required.issuperset(KINDS[kind]):
        raise ConfigError(
            f"a spec of kind {kind} must be of type object and require {', '.join(KINDS[kind])}", where=str(file)
        )
    columns = doc.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
        fix = 'map our field names to the file\'s, e.g. {"prompt": "question"}'
        raise ConfigError("the spec's columns are no map of names", where=str(file), fix=fix)
    return DatasetSpec(file.stem, kind, str(doc.get("version", "1.0.0")), doc, columns)


def load_specs(folders: Iterable[Path]) -> dict[str, DatasetSpec]:
    """Read all specs of some folders, built-in ones first. Raises ConfigError."""
    specs: dict[str, DatasetSpec] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            if file.stem in specs:
                raise ConfigError(f"spec {file.stem!r} exists already", where=str(file), fix="choose another name")
            specs[file.stem] = read_spec(file)
    return specs


def nearest_spec(name: str, specs: Mapping[str, DatasetSpec]) -> str | None:
    """The known spec whose name is closest."""
    return next(iter(difflib.get_close_matches(name, specs, 1, 0.4)), None)


DATASET_SPECS: Mapping[str, DatasetSpec] = load_specs([builtin_config() / "specs"])
