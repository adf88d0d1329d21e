"""Packs the declarative `config/` folder into the wheel as `core/builtin_config`; see pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):
    """`core.paths.builtin_config` looks there first and beside `core` (a checkout) second."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout reads its own config/
        target = Path(self.build_lib) / "core" / "builtin_config"
        hidden = shutil.ignore_patterns(".*", "hosts.json")
        shutil.copytree(Path(__file__).parent / "config", target, ignore=hidden, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfig})
