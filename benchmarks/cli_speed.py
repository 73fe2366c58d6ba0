"""Seconds of `gpustack version` and `gpustack start --help`. Floor: the interpreter importing click."""

from __future__ import annotations

import sys

from common import GPUSTACK, report, seconds


def main() -> None:
    """Measure both."""
    floor = seconds([sys.executable, "-c", "import click"])
    name = "importing click"
    report("gpustack version", seconds([GPUSTACK, "version"]), "s", floor=floor, floor_name=name, goal=0.15)
    report(
        "gpustack start --help",
        seconds([GPUSTACK, "start", "--help"]),
        "s",
        floor=floor,
        floor_name=name,
        goal=0.3,
    )


if __name__ == "__main__":
    main()
