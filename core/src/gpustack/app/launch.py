"""Becomes another program that ends with its parent: ``python -m gpustack.app.launch PARENT PROGRAM ARGV...``.

PARENT is the number of the process that starts it. Where the system cannot replace processes, the program runs as a child.
"""

from __future__ import annotations

import os
import subprocess
import sys

from gpustack.kit.errors import system_line
from gpustack.kit.process import end_with_parent


def main() -> int:
    """Be the program; returns only when that cannot be, with what is wrong said."""
    parent, program, *argv = sys.argv[1:]
    end_with_parent(int(parent))
    if sys.platform == "win32":
        return subprocess.call(argv, executable=program)
    try:
        os.execv(program, argv)
    except OSError as error:
        sys.stderr.write(f"Error: {program} cannot be run: {system_line(error)}\n")
        return 126


if __name__ == "__main__":
    sys.exit(main())
