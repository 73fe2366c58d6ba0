"""Starts SGLang as a module. Versions without a command of their own get this one, in a package around them."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import version


def main() -> None:
    """Tell the version, or be ``python -m sglang.launch_server``."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"sglang {version('sglang')}\n")
        return
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
