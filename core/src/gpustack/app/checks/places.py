"""Directories that the settings name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpustack.app.checks.finding import Finding
from gpustack.app.disks import FULL
from gpustack.kit.text import human_bytes
from gpustack.settings.load import Loaded


def directories(loaded: Loaded) -> Iterator[Finding]:
    """Check that each is a directory that can be written to, or made."""
    said: set[Path] = set()
    for name, path in _places(loaded):
        there = _nearest(path)
        # What is not given lies below the data directory.
        if there in said or (said and name not in loaded.given):
            continue
        if reason := _unusable(path, there):
            said.add(there)
            yield Finding(
                level="problem", options=(name, "data_dir"), text=f"{loaded.origin(name)} {path}: {reason}"
            )


def full_disks(loaded: Loaded) -> Iterator[Finding]:
    """Warn of a disk without room; what is there goes on all the same."""
    disks: set[int] = set()
    for name, path in _places(loaded):
        try:
            there = _nearest(path)
            disk, usage = there.stat().st_dev, shutil.disk_usage(there)
        except OSError:
            continue  # said by who looks at the directory itself
        # What has no size is no disk.
        if disk not in disks and usage.total and usage.free < FULL:
            yield Finding(
                level="warning",
                options=(name, "data_dir"),
                text=f"{loaded.origin(name)} {path}: its disk is full ({human_bytes(usage.free)} left); make room",
            )
        disks.add(disk)


def _places(loaded: Loaded) -> Iterator[tuple[str, Path]]:
    settings = loaded.settings
    yield "data_dir", settings.data_dir
    yield "log_dir", settings.log_dir
    if not settings.disable_worker:
        yield "cache_dir", settings.cache_dir
        yield "bin_dir", settings.bin_dir


def _nearest(path: Path) -> Path:
    """Return the path, or what of the way to it exists."""
    for each in (path, *path.parents):
        try:
            each.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return each
        return each
    return path


def _unusable(path: Path, there: Path) -> str:
    try:
        if not there.is_dir():
            return f"{there} is not a directory; name another place"
    except OSError as error:
        return f"it cannot be looked at: {error.strerror}; change the owner or name another place"
    if os.access(there, os.W_OK | os.X_OK) and path.parts[1:2] not in (("proc",), ("sys",)):
        return ""
    what = "it is not writable" if there == path else f"it cannot be made in {there}, which is not writable"
    return f"{what}; change the owner or name another place"
