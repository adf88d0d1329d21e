"""Writes what can be read off the code: docs/settings.md, docs/cli.md, the tree in ARCHITECTURE.md, request fields.

python scripts/make_docs.py            write them
python scripts/make_docs.py --check    exit 1 naming what is stale (tests/contract/test_docs.py does the same)
"""

import ast
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # a script's own folder is first otherwise

import click  # noqa: E402

from core.cli import COMMANDS, cli  # noqa: E402
from core.settings import config_schema  # noqa: E402
from inference.fields import support_table  # noqa: E402

TREE_START, TREE_END = "<!-- tree: make fix writes it -->", "<!-- /tree -->"
FIELDS_START, FIELDS_END = "<!-- fields: make fix writes them from the validator -->", "<!-- /fields -->"
ROOMS = ("config", "core", "trainer", "monitoring", "inference", "curriculum", "scripts", "tests")
DATA_ROOMS = {
    "inbox": "files are dropped here",
    "queue": "one folder a job",
    "checkpoints": "what training has committed",
    "status": "what the processes say",
}
_FOLDERS = {
    "config": "declarative data, never Python",
    "config/schemas": "JSON Schema of config, hosts, sidecar, verdict, manifest and status files",
    "config/specs": "one dataset spec a file",
    "config/suites": "evaluation suites that ship with the package",
    "scripts": "short shell and benchmark scripts; make calls them",
    "tests": "unit/<room>/, integration/, contract/",
}
_WIDTH, _NAME = 118, 28
_ARROW = re.compile(r" \((?:arrow|beside|inside|all arrows|queue ->|trainer ->)[^()]*\)$")  # the tree has its own order


def pages() -> dict[Path, str]:
    """Every generated page and what it must hold."""
    architecture, readme, serving = (REPOSITORY / name for name in ("ARCHITECTURE.md", "README.md", "docs/serving.md"))
    return {
        REPOSITORY / "docs" / "settings.md": settings_page(config_schema()),
        REPOSITORY / "docs" / "cli.md": cli_page(),
        architecture: between(architecture.read_text(), TREE_START, TREE_END, f"```\n{tree()}\n```\n"),
        readme: between(readme.read_text(), FIELDS_START, FIELDS_END, support_table()),
        serving: between(serving.read_text(), FIELDS_START, FIELDS_END, support_table()),
    }


def settings_page(schema: Mapping[str, Any]) -> str:
    """config.json, key by key."""
    lines = [
        "# Settings",
        "",
        "Written by `make fix` from `config/schemas/config.schema.json`. The order of precedence: `config.json`,",
        "then the environment (`DROPFORGE_<SECTION>__<KEY>`, for a top-level key `DROPFORGE_<KEY>`), then",
        "`--set section.key=value`. An unknown key is refused by its path.",
        "`dropforge config show` prints what is in force.",
        "",
        "| key | default | meaning | example |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *_rows(schema["properties"], "")]) + "\n"


def _rows(properties: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, part in properties.items():
        key = f"{prefix}{name}"
        if "properties" in part:
            yield from _rows(part["properties"], f"{key}.")
        elif name != "$schema":
            allowed = f" One of {', '.join(_code(v) for v in part['enum'])}." if "enum" in part else ""
            example = _code(part["examples"][0]) if part.get("examples") else ""
            yield f"| `{key}` | {_code(part.get('default'))} | {part['description']}{allowed} | {example} |"


def _code(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def cli_page() -> str:
    """Every command with its options."""
    parts = [
        "# Commands",
        "",
        "Written by `make fix` from the commands themselves. `--root DIR`, `--set KEY=VALUE` and `--json` stand",
        "before or after any verb. Exit codes: 0 clean, 1 unexpected, 2 usage or configuration, 3 already running,",
        "4 storage, 5 the answer is no.",
    ]
    context = click.Context(cli, info_name="dropforge")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            parts += _command(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(parts) + "\n"


def _command(command: click.Command, context: click.Context) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = ["", f"## {context.command_path} {usage}", "", (command.help or "").strip()]
    options = [p for p in command.get_params(context) if isinstance(p, click.Option) and not _EVERYWHERE & {*p.opts}]
    records = [record for option in options if (record := option.get_help_record(context))]
    lines += ["", *[f"- `{flags}` {text}".rstrip() for flags, text in records]] if records else []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                lines += _command(child, click.Context(child, info_name=name, parent=context))
    return lines


_EVERYWHERE = {"--root", "--set", "--json", "--help"}


def between(text: str, start: str, end: str, body: str) -> str:
    """A page with what stands between two marks made anew."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{body}{end}{after}"


def tree() -> str:
    """Rooms, folders and modules, each with what its docstring says first."""
    lines = [f"{room + '/':28}{what}" for room, what in DATA_ROOMS.items()]
    for room in ROOMS:
        if (REPOSITORY / room).is_dir():
            lines += _folder(REPOSITORY / room, 0)
    return "\n".join(
        line[:_NAME] + textwrap.shorten(line[_NAME:], _WIDTH - _NAME, placeholder=" ...") for line in lines
    )


def _folder(folder: Path, depth: int) -> list[str]:
    name = folder.relative_to(REPOSITORY).as_posix()
    said = _FOLDERS.get(name) or _first_words(folder / "__init__.py")
    lines = [f"{'  ' * depth + folder.name + '/':28}{said}"]
    if name.startswith(("config/", "tests/")) or name == "monitoring/ui":
        return lines
    entries = sorted(e for e in folder.iterdir() if not e.name.startswith((".", "_")) or e.name == "__main__.py")
    for entry in entries:
        if entry.is_dir() and _has_files(entry):
            lines += _folder(entry, depth + 1)
        elif entry.suffix in (".py", ".sh"):
            lines.append(f"{'  ' * (depth + 1) + entry.name:28}{_first_words(entry)}")
    return lines


def _has_files(folder: Path) -> bool:
    return any(p.is_file() and "__pycache__" not in p.parts for p in folder.rglob("*"))


def _first_words(path: Path) -> str:
    """The first sentence of a module's docstring, or the first comment of a shell script."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
    said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    first, dot, _ = said.partition(". ")
    return _ARROW.sub("", first if dot else said.rstrip("."))


def stale() -> list[Path]:
    """The pages that are not what the code says."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Write or check the pages."""
    found = stale()
    if "--check" in sys.argv[1:]:
        for path in found:
            print(f"stale: {path.relative_to(REPOSITORY)} (make fix writes it)")
        return 1 if found else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
