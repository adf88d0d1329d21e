"""The documents are held to the code: generated pages, the tree, every command and path that a page names."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from core.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", REPOSITORY / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_and_the_tree_are_what_the_code_says() -> None:
    stale = [path.relative_to(REPOSITORY).as_posix() for path in make_docs().stale()]
    assert stale == [], "run make fix"


def test_a_module_that_is_missing_in_the_tree_makes_it_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = make_docs()
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "fresh.py").write_text('"""A fresh module (arrow: intake). More."""\n')
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    assert "  fresh.py                  A fresh module\n" in module.tree() + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"dropforge(?: --\S+ \S+)? ([a-z]+)\b(?![-./])", code_of(page)))
    assert named <= {*COMMANDS}, f"{page} names {named - {*COMMANDS}}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (REPOSITORY / page).read_text())
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`|^\s*make ([a-z]+)", (REPOSITORY / page).read_text(), re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def code_of(page: str) -> str:
    """What stands in code blocks and between backticks."""
    text = (REPOSITORY / page).read_text()
    return "\n".join(re.findall(r"```.*?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
