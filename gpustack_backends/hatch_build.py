# ruff: noqa: INP001  (hatchling loads this file by its path)
"""Puts the source of the llama.cpp launcher into what is built from here.

gpustack-backends makes the launcher's wheel itself (``gpustack_backends.llama_cpp.launcher``), so a built wheel
carries the source. An editable installation reads it where it lies in the repository, and a source distribution
has it in the package already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LauncherSource(BuildHookInterface[BuilderConfig]):
    """Adds ``_launcher`` to the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Tell hatchling which files come from outside this folder."""
        launcher = Path(self.root).parent / "plugins" / "gpustack-llama-server"
        package = Path("gpustack_backends", "llama_cpp", "_launcher")
        if version == "editable" or (Path(self.root) / "src" / package).is_dir():
            return
        if self.target_name == "sdist":
            package = "src" / package
        for name in ("LICENSE", "src/gpustack_llama_server"):
            build_data["force_include"][str(launcher / name)] = str(package / Path(name).name)
