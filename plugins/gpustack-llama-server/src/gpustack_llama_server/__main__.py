"""``python -m gpustack_llama_server``."""

import sys

from gpustack_llama_server.main import main

sys.exit(main())
