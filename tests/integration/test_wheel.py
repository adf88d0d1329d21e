"""The wheel stands alone: configuration, page and embedded tokenizer are packed, and a root can be made from it."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKED = ("core", "trainer", "monitoring", "inference", "curriculum", "config")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in PACKED:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "config" / "hosts.json").write_text("{}")
    out = tmp_path_factory.mktemp("wheel")
    argv = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(copy),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def dropforge(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, from the wheel in a fresh environment that borrows only the dependencies of this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([str(python), "-m", "pip", *install], check=True, capture_output=True)
    return environment / "bin" / "dropforge"


def test_the_wheel_holds_what_the_package_reads_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops <= {*PACKED} - {"config"}
    for wanted in (
        "core/builtin_config/schemas/config.schema.json",
        "core/builtin_config/specs/chat_sft_v1.json",
        "trainer/models/tiny_corpus.txt",
        "monitoring/ui/index.html",
        "monitoring/ui/app.css",
        "monitoring/ui/js/main.js",
    ):
        assert wanted in names
    assert "core/builtin_config/hosts.json" not in names
    suites = {path.name for path in (REPOSITORY / "config" / "suites").iterdir() if path.is_dir()}
    assert suites <= {name.split("/")[3] for name in names if name.startswith("core/builtin_config/suites/")}


def test_the_chart_library_is_in_the_wheel_when_it_is_installed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    library = REPOSITORY / "monitoring" / "ui" / "node_modules" / "uplot"
    wanted = {"LICENSE", "dist/uPlot.iife.min.js", "dist/uPlot.min.css"} if library.exists() else set()
    assert {n.partition("/uplot/")[2] for n in names if "/node_modules/" in n} == wanted


def test_a_root_made_by_the_wheel_is_whole_and_the_checkout_is_not_used(dropforge: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run([str(dropforge), "init", str(root)], check=True, capture_output=True, cwd=tmp_path)
    config = json.loads((root / "config.json").read_text())
    schema = (root / config["$schema"]).resolve()
    assert schema.is_file()
    assert dropforge.parent.parent in schema.parents
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    argv = [str(dropforge), "--root", str(root), "check", str(rows), "--json"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout)["files"][0]["state"] is None
