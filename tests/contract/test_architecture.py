"""The import table of ARCHITECTURE.md, held: room by room, and level by level inside core."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("core", "trainer", "monitoring", "inference", "curriculum")

OURS = {
    "core": (),
    "trainer": ("core",),
    "monitoring": ("core",),
    "inference": ("core", "trainer.models", "trainer.profiles"),
    "curriculum": ("core",),
}
THIRD_PARTY = {
    "core": "jsonschema jsonschema_rs orjson msgspec zstandard numpy watchdog psutil requests urllib3 pynvml "
    "sqlalchemy click rich jinja2 datasketch py3langid",
    "trainer": "torch transformers peft accelerate safetensors tokenizers numpy jsonschema_rs regex",
    "monitoring": "flask waitress prometheus_client jinja2 werkzeug",
    "inference": "flask waitress prometheus_client safetensors numpy werkzeug jsonschema_rs llguidance",
    "curriculum": "flask requests waitress werkzeug",
}
# what one file or folder may use beyond its room: an adapter is the only place that knows its package
ADAPTERS = {
    "core/chat_templates.py": "tokenizers",
    "core/formats/": "pyarrow",
    "core/tokenizer_files.py": "tokenizers",
    "core/byte_lengths.py": "tokenizers",
    "core/pieces.py": "tokenizers",
    "inference/model_slot.py": "torch transformers",
    "inference/engine/": "torch transformers",
    "monitoring/reports/": "numpy requests apprise",
}
CORE_LEVELS = (
    "errors paths",
    "atomic logs gpu manifest_chain",
    "settings hosts lineage control status job_queue checkpoints drop verdicts provenance model_card",
    "services formats chat_templates chatml jinja_sandbox template_text tokenizer_files memory_estimate byte_lengths"
    " pieces",
    "validation ledger lineage_tracker verification ledger_curve",
    "daemon commands cli",
)
LEVEL = {name: level for level, names in enumerate(CORE_LEVELS) for name in names.split()}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def source_files(root: Path) -> list[Path]:
    """Every Python file of every room, without what npm brought."""
    return [p for room in ROOMS for p in sorted((root / room).rglob("*.py")) if "node_modules" not in p.parts]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, inside functions too; a relative one starts with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module
            if module in ROOMS or module == "trainer":
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def forbidden_edges(root: Path) -> list[str]:
    """Every import of the rooms below `root` that the table does not hold, one line each."""
    found = []
    for path in source_files(root):
        name = path.relative_to(root).as_posix()
        for line, module in imports(ast.parse(path.read_text(), name)):
            reason = refusal(name, module)
            if reason:
                found.append(f"{name}:{line} imports {module}: {reason}")
    return found


def refusal(name: str, module: str) -> str:
    """Why the file `name` may not import `module`, or an empty string."""
    room, top = name.split("/")[0], module.split(".")[0]
    if module.startswith("."):
        return "imports are absolute"
    if top in ("scripts", "tests"):
        return "nobody imports scripts or tests"
    if top == room:
        return level_refusal(name, module) if room == "core" else ""
    if top in ROOMS:
        whole_room_named = module == top and any(a.startswith(top + ".") for a in OURS[room])
        return "" if is_within(module, OURS[room]) or whole_room_named else f"{room} may not import {top}"
    if top in sys.stdlib_module_names:
        return ""
    allowed = THIRD_PARTY[room].split()
    allowed += [extra for place, more in ADAPTERS.items() if name.startswith(place) for extra in more.split()]
    return "" if top in allowed else f"{top} is not in {room}'s row of the table"


def level_refusal(name: str, module: str) -> str:
    """Inside core a module stands on its own level or a lower one."""
    parts = module.split(".")
    if len(parts) < 2:
        return ""
    own, other = Path(name).parts[1].removesuffix(".py"), parts[1]
    unknown = next((part for part in (own, other) if part not in LEVEL and part != "__init__"), None)
    if unknown:
        return f"core.{unknown} has no level in the table"
    return "" if LEVEL.get(own, 99) >= LEVEL.get(other, 0) else f"core.{own} stands below core.{other}"


def core_cycle(root: Path) -> list[str]:
    """A cycle among core's modules (packages counted as one), or an empty list."""
    edges: dict[str, set[str]] = {}
    for path in sorted((root / "core").rglob("*.py")):
        own = path.relative_to(root / "core").parts[0].removesuffix(".py")
        for _line, module in imports(ast.parse(path.read_text())):
            parts = module.split(".")
            if parts[0] == "core" and len(parts) > 1 and parts[1] != own:
                edges.setdefault(own, set()).add(parts[1])
    return find_cycle(edges)


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for after in sorted(edges.get(node, ())):
            if cycle := walk(after, [*trail, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(edges) if (cycle := walk(node, []))), [])


def test_no_module_imports_what_the_table_does_not_allow() -> None:
    assert forbidden_edges(REPOSITORY) == []


def test_core_has_no_import_cycle() -> None:
    assert core_cycle(REPOSITORY) == []


@pytest.mark.parametrize(
    ("place", "line", "reason"),
    [
        ("core/settings.py", "import torch", "torch is not in core's row"),
        ("core/status.py", "def f():\n    from trainer.engine import Engine", "core may not import trainer"),
        ("core/atomic.py", "from core.settings import Settings", "core.atomic stands below core.settings"),
        ("core/strange.py", "import os\nfrom core import errors", "core.strange has no level"),
        ("core/job_queue.py", "from core import cli", "core.job_queue stands below core.cli"),
        ("core/validation/rows.py", "import tokenizers", "tokenizers is not in core's row"),
        ("inference/app.py", "import torch", "torch is not in inference's row"),
        ("inference/app.py", "from trainer.engine import Engine", "inference may not import trainer"),
        ("inference/app.py", "from trainer import engine", "inference may not import trainer"),
        ("trainer/engine.py", "from . import data", "imports are absolute"),
        ("monitoring/app.py", "import fastapi", "fastapi is not in monitoring's row"),
        ("trainer/data.py", "from tests.conftest import workspace", "nobody imports scripts or tests"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, place: str, line: str, reason: str) -> None:
    planted = tmp_path / place
    planted.parent.mkdir(parents=True)
    planted.write_text(line + "\n")
    assert any(reason in edge for edge in forbidden_edges(tmp_path))


def test_what_the_table_allows_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "model_slot.py").write_text("import torch\nfrom trainer.models import load\n")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "cli.py").write_text("import click\nfrom core import errors\n")
    assert forbidden_edges(tmp_path) == []


def test_a_planted_cycle_in_core_is_found(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "control.py").write_text("from core.status import read_status\n")
    (tmp_path / "core" / "status.py").write_text("from core import control\n")
    assert core_cycle(tmp_path) == ["control", "status", "control"]


def oversized(root: Path, folders: tuple[str, ...]) -> list[str]:
    """Files and functions beyond the house's sizes."""
    found = []
    for path in (p for folder in folders for p in sorted((root / folder).rglob("*.py"))):
        if "node_modules" in path.parts:
            continue
        name, text = path.relative_to(root).as_posix(), path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            found.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{name}:{node.lineno} {node.name}() {lines} lines")
    return found


def test_no_file_and_no_function_is_longer_than_the_house_allows() -> None:
    assert oversized(REPOSITORY, (*ROOMS, "scripts", "tests")) == []


def test_an_oversized_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "long.py").write_text("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES)
    assert oversized(tmp_path, ("core",)) == [f"core/long.py:1 f() {MAX_FUNCTION_LINES + 1} lines"]


FORBIDDEN_NAMES = {"utils", "helpers", "common"} | set(sys.stdlib_module_names)


def test_no_module_has_an_empty_name_or_one_of_the_standard_library() -> None:
    top_names = [p.relative_to(REPOSITORY) for p in source_files(REPOSITORY)]
    bad = [p.as_posix() for p in top_names if p.stem in FORBIDDEN_NAMES - {"__main__", "__init__"}]
    assert bad == []


def test_every_module_opens_with_a_docstring() -> None:
    bare = [p.name for p in source_files(REPOSITORY) if not ast.get_docstring(ast.parse(p.read_text()))]
    assert bare == []


def test_data_rooms_hold_no_python_and_tests_no_package_file() -> None:
    data = [
        p for room in ("inbox", "queue", "checkpoints", "status", "config") for p in (REPOSITORY / room).rglob("*.py")
    ]
    assert data + list((REPOSITORY / "tests").rglob("__init__.py")) == []
