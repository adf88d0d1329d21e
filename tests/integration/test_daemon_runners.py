"""The short forms of the reliability runners: what `make prove` counts at length, counted briefly."""

import subprocess
import sys
from pathlib import Path

import pytest

SHORT = {
    "intake_kills": ("--points", "9", "--workers", "1"),
    "intake_faults": ("--runs", "7", "--workers", "1"),
    "single_instance": ("--rounds", "1", "--daemons", "5"),
    "deliveries": ("--times", "1", "--burst", "60", "--settle", "0.2"),
    "power_cut": ("--cuts", "10"),
    "training_faults": ("--faults", "3", "--full", "2", "--cuts", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("runner", SHORT)
def test_the_short_form_of_a_runner_counts_no_loss(runner: str, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "yard").mkdir()
    argv = [sys.executable, "-m", f"scripts.reliability.{runner}", *SHORT[runner], "--folder", str(tmp_path / "yard")]
    done = subprocess.run(argv, cwd=repository, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
