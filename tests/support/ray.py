"""The real Ray, installed by the real installer below ``.cache/engines`` and kept for the next run: it is 300 MB."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from pathlib import Path

from gpustack.worker.artifacts import ArtifactInstaller
from gpustack.worker.runners.ray import RAY
from support.cache import CACHE, locked


def install_ray() -> Path:
    """Return the ``--bin-dir`` that has it."""
    interpreter = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode()).hexdigest()[:8]
    root = Path(os.environ.get("GPUSTACK_TEST_ENGINES") or CACHE / "engines") / interpreter
    with locked(root / ".tests.lock"):
        asyncio.run(ArtifactInstaller(bin_dir=root / "bin", data_dir=root).ensure("ray", RAY))
    return root / "bin"


def plugin_path(folder: Path) -> Path:
    """Return a folder that makes a plugin of the backend ``ray-members`` when it is on ``PYTHONPATH``."""
    source = Path(__file__).parent / "ray_members"
    info = folder / "ray_members-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-members\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gpustack]\nray-members = ray_members.plugin\n")
    shutil.copytree(source, folder / "ray_members")
    (folder / "ray_members" / "__init__.py").touch()
    return folder
