"""Where the hub and its cache are, and how patient we are with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """Plain values; the directory need not exist. The token is in no text that this makes."""

    #: The hub's cache, in the layout of ``huggingface_hub``.
    cache_dir: Path
    endpoint: str = ENDPOINT
    token: str = field(default="", repr=False)
    #: Fetch what the hub offers by its Xet protocol that way: faster, but what is interrupted begins anew.
    xet: bool = False
    #: Take more connections and memory.
    fast: bool = False
    #: Ask nobody: what is here is all there is.
    offline: bool = False
    #: Seconds without a byte after which a connection is given up.
    stall: float = 60.0
    #: Seconds between attempts after passing trouble: the first wait, and the longest.
    retry_first: float = 2.0
    retry_limit: float = 300.0
