"""``python -m gpustack`` is ``gpustack``."""

import sys

from gpustack.cli import main

if __name__ == "__main__":
    sys.exit(main())
