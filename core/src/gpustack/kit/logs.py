"""One way of logging: the time, the level, the thing's name first, no colour, to standard error."""

from __future__ import annotations

import logging
import sys


def configure(role: str, *, debug: bool = False) -> None:
    """Log lines of this process to standard error, each with ``role`` (server, worker, …) in front."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)-7s {role} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        for chatty in ("httpx", "httpcore", "asyncio", "uvicorn.access"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
