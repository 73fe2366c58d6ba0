"""Runs every benchmark, or those named: ``make bench ARGS="idle cli_speed"``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = (
    "cli_speed",
    "start_up",
    "idle",
    "api_speed",
    "fleet_list",
    "fleet_heartbeats",
    "recovery",
    "demo",
    "install_size",
    "gateway",
    "prefix_affinity",
    "scheduling",
    "freed_gpu",
)


def main() -> int:
    """Run each in a process of its own; the exit status is that of the worst."""
    names = sys.argv[1:] or PROGRAMS
    unknown = set(names) - set(PROGRAMS)
    if unknown:
        print(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}",
            file=sys.stderr,
        )
        return 2
    return max(
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
