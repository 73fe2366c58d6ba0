"""Packages and bytes of GPUStack in an empty environment. Floor: its third parties alone."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from common import report

ROOT = Path(__file__).parents[1]
UV = str(ROOT / ".tools" / "uv" / "bin" / "uv")
MEMBERS = [
    "core",
    "gpustack_backends",
    "gpustack_auth",
    "gpustack_gateway",
    "plugins/gpustack-demo-model",
    "plugins/gpustack-gpu-nvidia",
    "plugins/gpustack-system",
    ".",
]


def _measure(environment: Path) -> tuple[int, float]:
    names = subprocess.run(
        [UV, "pip", "list", "--quiet", "--python", str(environment), "--format", "freeze"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    files = {(s.st_dev, s.st_ino): s.st_size for p in environment.rglob("*") if (s := p.lstat())}
    return len(names), sum(files.values()) / 1e6


def main() -> None:
    """Install the third parties, then our own distributions, with bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        subprocess.run([UV, "venv", "--quiet", str(environment)], check=True)
        base = [
            UV,
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--link-mode",
            "copy",
            "--python",
            str(environment),
        ]
        subprocess.run([*base, "--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")], check=True)
        third_count, third_size = _measure(environment)
        subprocess.run([*base, "--no-deps", *(str(ROOT / member) for member in MEMBERS)], check=True)
        count, size = _measure(environment)
    report("packages", count, "", floor=third_count, floor_name="third parties", goal=90)
    report("size with bytecode", size, "MB", floor=third_size, floor_name="third parties", goal=300)


if __name__ == "__main__":
    main()
