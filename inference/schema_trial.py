"""Whether a stranger's JSON Schema can be followed, tried in a process that may not take long or much (inside the
inference server; torch-free).

`python -m inference.schema_trial` reads a schema on stdin and writes one JSON line: null, or what is wrong with it.
Compiling is exponential for some schemas (intersections of patterns), whatever the library's own limits say; here the
kernel ends it.
Units    bytes, seconds of processor time
"""

import json
import resource
import subprocess
import sys
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any  # Any: a schema is JSON; both libraries leave types unnamed

import jsonschema_rs

from core.atomic import parse_json
from core.errors import JsonError, OverloadedError
from inference.protocol import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_CPU_S = 2
_MEMORY_BYTES = 1 << 30  # of addresses, half of which Python and NumPy take before anything is compiled
_WALL_S = 20.0
_WAIT_S = 30.0
# What may stand between two tokens of JSON: room for indented documents, none for endless white space.
_OPTIONS: Any = {"whitespace_pattern": r" |\n {0,16}|\n\t{0,8}", "whitespace_flexible": True, "lenient": False}
_one_at_a_time = threading.Lock()


def require_library() -> None:
    """Raises RequestError saying how to get it."""
    try:
        import llguidance  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "response_format needs llguidance on the serving host: pip install 'dropforge[json]'",
            param="response_format",
            code="unsupported_parameter",
        ) from error


def compile_schema(schema: str, tokenizer: "LLTokenizer") -> "LLMatcher":
    """The schema as a grammar over this tokenizer; `is_error` of the result tells whether that worked.

    Raises:
        ValueError: it is nested too deep to be read.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,  # about 7 ms of one step
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def validator_of(schema: str) -> Any:
    """A validator in linear time that fetches nothing. Raises ValueError or jsonschema_rs' errors."""
    return jsonschema_rs.validator_for(
        json.loads(schema), pattern_options=jsonschema_rs.RegexOptions(), retriever=_fetch_nothing
    )


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"$ref to {uri[:100]!r}: only references inside the schema are followed")


def problem_with(schema: str) -> str | None:
    """What keeps this schema from being followed, in this process."""
    from llguidance import LLTokenizer

    try:
        doc = json.loads(schema)
    except RecursionError:
        return "it is nested too deep"
    if "x-guidance" in doc:
        return "x-guidance is not supported"
    try:
        validator_of(schema)
        matcher = compile_schema(schema, LLTokenizer("byte"))
    except (ValueError, jsonschema_rs.ReferencingError) as error:  # jsonschema_rs' ValidationError is a ValueError
        return explained(getattr(error, "message", str(error)))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return explained(matcher.get_error()) if matcher.is_error() else None


def explained(problem: str) -> str:
    """The library's words in one line, the terse ones spelled out."""
    text = " ".join(problem.replace("<non-verbose/>", "").split())[:200]
    if text.startswith("NoExtension"):
        return "no document of finite length satisfies it"
    return text.replace("Unimplemented keys:", "keywords that are not supported:") or "it cannot be compiled"


@lru_cache(maxsize=64)
def try_schema(schema: str) -> str | None:
    """What is wrong with this schema; None when it can be followed. Raises OverloadedError: too many are tried now."""
    if not _one_at_a_time.acquire(timeout=_WAIT_S):
        raise OverloadedError("other schemas are being compiled", fix="ask again in a few seconds")
    try:
        argv = [sys.executable, "-m", "inference.schema_trial"]
        done = subprocess.run(argv, input=schema.encode(), capture_output=True, timeout=_WALL_S, check=False)
    except subprocess.TimeoutExpired as error:  # the machine's fault: the processor time is limited to far less
        raise OverloadedError("a schema could not be tried in time", fix="ask again in a few seconds") from error
    finally:
        _one_at_a_time.release()
    try:
        problem = parse_json(done.stdout, "schema_trial")
    except JsonError:
        return f"compiling it takes more than {_CPU_S} s or {_MEMORY_BYTES >> 20} MB: simplify it"
    return None if problem is None else str(problem)


def main() -> None:
    """Try the schema on stdin within the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(json.dumps(problem_with(sys.stdin.read())))


if __name__ == "__main__":
    main()
