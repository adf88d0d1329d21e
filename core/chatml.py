"""Our own chat template, ChatML with generation marks, as Jinja2 and as plain Python (all arrows).

Both forms give the same text, which a test holds; the Python form is some twenty times faster on the gates' hot path.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """How a turn begins and ends. `bos` is empty unless the tokenizer puts one in front of every text."""

    start: str = "<|im_start|>"
    end: str = "<|im_end|>"
    bos: str = ""


def chatml_template(marks: TurnMarks | None = None) -> str:
    """The template as Jinja2 text for chat_template.jinja; the default is what Qwen-like vocabularies use."""
    marks = marks or TurnMarks()
    start, end, bos = (json.dumps(text, ensure_ascii=False) for text in (marks.start, marks.end, marks.bos))
    return (
        f"{{{{- {bos} }}}}{{%- for message in messages %}}"
        f"{{{{- {start} + message['role'] + '\\n' }}}}"
        "{%- if message['role'] == 'assistant' %}"
        f"{{%- generation %}}{{{{- message['content'] + {end} }}}}{{%- endgeneration %}}"
        f"{{%- else %}}{{{{- message['content'] + {end} }}}}{{%- endif %}}{{{{- '\\n' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{- {start} + 'assistant\\n' }}}}{{%- endif %}}"
    )


def render_chatml(
    marks: TurnMarks, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Render a chat and say which characters are the assistant's (its text and the end of its turn).

    Returns:
        The text, and (start, end) character spans of what is trained.
    """
    start, end = marks.start, marks.end
    parts = [marks.bos]
    spans: list[tuple[int, int]] = []
    length = len(marks.bos)
    for message in messages:
        role, content = message["role"], message["content"]
        head, body = f"{start}{role}\n", f"{content}{end}"
        begins = length + len(head)
        length = begins + len(body) + 1
        parts += (head, body, "\n")
        if role == "assistant":
            spans.append((begins, length - 1))
    if add_generation_prompt:
        parts.append(f"{start}assistant\n")
    return "".join(parts), spans
