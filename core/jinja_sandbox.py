"""Chat templates are foreign code: they run here, in a sandbox with a budget (all arrows, through chat_templates).

Behaves as transformers' renderer (same filters, tags and white space rules), except that `strftime_now` does not
exist, since what reaches the weights must not depend on the day, and that loops, repeats and paddings are bounded.

Errors   TemplateRefusedError naming what the template did; nothing else escapes
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any  # jinja2 values have any type

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from core.template_text import Message, TemplateRefusedError

MAX_LOOP_STEPS = 200_000  # of one rendering; a chat of 10,000 turns needs about 10,000
_MAX_TEXT_CHARS = 1 << 22  # what one `*` may make
_PADDING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill", "format", "format_map"})
_LOOPS: ContextVar[list[int]] = ContextVar("loops")
_LOOP_COUNTER, _CALL_COUNTER = "dropforge_bounded", "dropforge_spend"
_OPEN, _CLOSE = "generation_opens", "generation_closes"


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}`: what stands inside is the model's own text; it is put between two marks of the caller."""

    tags = {"generation"}  # noqa: RUF012  # the attribute jinja2 asks for

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[jinja2.nodes.Expr] = [
            jinja2.nodes.Name(_OPEN, "load"),
            jinja2.nodes.Name(_CLOSE, "load"),
        ]
        return jinja2.nodes.CallBlock(self.call_method("_between", marks), [], [], body).set_lineno(line)

    @staticmethod
    def _between(opens: str, closes: str, caller: Any) -> str:  # a jinja2 macro
        return f"{opens}{caller()}{closes}"


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """transformers' environment with a budget."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols])
        self.filters["tojson"] = _tojson
        for name in ("center", "indent", "format", "wordwrap", "xmlattr", "urlize"):
            del self.filters[name]
        self.filters["indent"] = _indent
        self.globals = {
            "range": jinja2.sandbox.safe_range,
            "dict": dict,
            "namespace": jinja2.utils.Namespace,
            "raise_exception": _raise_exception,
            _LOOP_COUNTER: _bounded,
            _CALL_COUNTER: _spend,
        }

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        sized = [part for part in (left, right) if isinstance(part, str | bytes | list | tuple)]
        times = [part for part in (left, right) if isinstance(part, int)]
        if operator == "**" or (operator == "%" and sized):
            raise jinja2.exceptions.SecurityError(f"the operator {operator} is not allowed here")
        if sized and times and len(sized[0]) * times[0] > _MAX_TEXT_CHARS:
            raise jinja2.exceptions.SecurityError("a repeat that fills the memory")
        return super().call_binop(context, operator, left, right)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not 0 <= int(width) <= 64:
        raise jinja2.exceptions.SecurityError("an indent over 64")
    return jinja2.filters.do_indent(text, int(width), first, blank)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(str(message)[:500])


def _spend() -> str:
    """Take one step of the rendering's budget."""
    budget = _LOOPS.get()
    budget[0] -= 1
    if budget[0] < 0:
        raise jinja2.exceptions.SecurityError(f"more than {MAX_LOOP_STEPS:,} loop steps and calls")
    return ""


def _bounded(items: Iterable[object]) -> Iterator[object]:
    """Hand out the items of a loop as long as the rendering's budget lasts."""
    for item in items:
        _spend()
        yield item


def _count_steps(tree: jinja2.nodes.Template) -> None:
    """Make every loop step and every macro call spend one step; work between two of them is bounded by the source."""
    for loop in list(tree.find_all(jinja2.nodes.For)):
        if loop.recursive:
            raise ValueError("recursive loops are not allowed")
        counter = jinja2.nodes.Name(_LOOP_COUNTER, "load")
        loop.iter = jinja2.nodes.Call(counter, [loop.iter], [], None, None)
    macros: list[jinja2.nodes.Macro | jinja2.nodes.CallBlock]
    macros = [*tree.find_all(jinja2.nodes.Macro), *tree.find_all(jinja2.nodes.CallBlock)]
    for macro in macros:
        call = jinja2.nodes.Call(jinja2.nodes.Name(_CALL_COUNTER, "load"), [], [], None, None)
        macro.body.insert(0, jinja2.nodes.ExprStmt(call))


class ChatTemplate:
    """One compiled chat template.

    Args:
        source: Jinja2 text, as in chat_template.jinja.
        special_tokens: what transformers passes too: {"bos_token": "<s>", ...}.

    Raises:
        TemplateRefusedError: the text does not compile.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special = dict(special_tokens)
        try:
            environment = _Sandbox()
            tree = environment.parse(source)
            _count_steps(tree)
            tree.set_environment(environment)
            # with a syntax tree, compile() gives a code object or raises; nothing is executed yet
            code = environment.compile(tree)
            self._template = environment.template_class.from_code(environment, code, environment.make_globals(None))
        except (jinja2.exceptions.TemplateError, RecursionError, ValueError, SyntaxError) as error:
            raise TemplateRefusedError(
                f"the chat template does not compile: {error}", fix="repair chat_template.jinja"
            ) from error
        self.has_marks = any(
            isinstance(node.call, jinja2.nodes.Call) and _is_mark(node.call)
            for node in tree.find_all(jinja2.nodes.CallBlock)
        )

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, opens: str = "", closes: str = ""
    ) -> str:
        """Render a chat; `opens` and `closes` are put around the model's own text where the template marks it.

        Raises:
            TemplateRefusedError: the template raised, or spent its budget.
        """
        token = _LOOPS.set([MAX_LOOP_STEPS])
        try:
            return self._template.render(
                self._special,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{_OPEN: opens, _CLOSE: closes},
            )
        except (jinja2.exceptions.TemplateError, RecursionError, MemoryError) as error:
            raise TemplateRefusedError(f"the chat template says: {error}") from error
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            raise TemplateRefusedError(f"the chat template fails: {error}") from error
        finally:
            _LOOPS.reset(token)


def _is_mark(call: jinja2.nodes.Call) -> bool:
    target = call.node
    return isinstance(target, jinja2.nodes.ExtensionAttribute) and target.name == "_between"
