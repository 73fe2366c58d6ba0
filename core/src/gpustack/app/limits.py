"""What the system allows us, raised as far as this user may."""

from __future__ import annotations

import resource

from gpustack.app.banner import say

_OPEN_FILES = 65536
#: Below this many open files a busy server runs out of them.
_FEW_FILES = 4096


def allow_open_files() -> None:
    """Raise the limit of open files as far as this user may: each stream takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _FEW_FILES:
        say(
            f"only {wanted} open files are allowed, and each stream takes two; raise the limit with `ulimit -Hn` or "
            "LimitNOFILE="
        )
