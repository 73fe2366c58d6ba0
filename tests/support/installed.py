"""Plugins that are installed for a test: a folder with distributions, before all others."""

from __future__ import annotations

import os
from pathlib import Path


def installed_plugin(folder: Path, name: str, module: str) -> None:
    """Install a plugin ``name`` of the distribution ``checked-NAME`` into ``folder``."""
    package = f"checked_{name}"
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: checked-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpustack]\n{name} = {package}\n")
    (folder / f"{package}.py").write_text(module)


def search_path(*first: Path) -> str:
    """Return what PYTHONPATH is, with other folders before it."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])
