"""The plugins of this machine: as this process sees them, and as one that starts now would.

A process knows what was installed when it began to look; ``python -m gpustack.cli.plugin_found`` is the fresh one. With
the name of a plugin it loads that one alone, which tells who ends or holds a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from gpustack.kit.errors import GPUStackError

if TYPE_CHECKING:
    from gpustack.schemas.plugins import PluginsPublic

#: Seconds that all plugins together may take to load.
_LOADING = 120.0
#: Seconds that one may take.
_ALONE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One plugin with what it brings, as pairs of kind and name."""

    name: str
    distribution: str
    version: str
    state: str
    reason: str
    brings: tuple[tuple[str, str], ...]

    @property
    def works(self) -> bool:
        """Tell whether all of it is used, or would be if nobody blocked it."""
        return self.state in ("loaded", "blocked")

    def __str__(self) -> str:
        return f"plugin {self.name} ({self.distribution} {self.version})"

    def document(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "state": self.state,
            "reason": self.reason,
            "brings": [{"kind": kind, "name": name} for kind, name in self.brings],
        }


def by_plugin(told: PluginsPublic) -> list[Found]:
    """Return the API's answer plugin by plugin, sorted by name."""
    brought: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for item in told.items:
        brought[item.plugin, item.distribution].append((item.kind, item.name))
    states = {
        (each.name, each.distribution): (each.version, each.state, each.reason) for each in told.plugins
    }
    # A server that is too old to tell the states still tells these.
    for item in told.items:
        states.setdefault((item.plugin, item.distribution), (item.version, "loaded", ""))
    for each in told.failures:
        states.setdefault((each.plugin, each.distribution), (each.version, "failed", each.error))
    return [
        Found(
            name=name,
            distribution=distribution,
            version=version,
            state=state,
            reason=reason,
            brings=tuple(brought[name, distribution]),
        )
        for (name, distribution), (version, state, reason) in sorted(states.items())
    ]


def here(only: str = "") -> list[Found]:
    """Return the plugins that this process can load, or those of one name, loaded without the others."""
    from gpustack.cli.loading import load_plugins
    from gpustack.server.api.plugins import describe

    points = [each for each in entry_points(group="gpustack") if each.name == only] if only else None
    return by_plugin(describe(load_plugins(points)))


def afresh(only: str = "") -> list[Found]:
    """Return the plugins that a process started now can load, or those of one name without the others.

    Raises GPUStackError when a plugin ends or holds it.
    """
    command = [sys.executable, "-P", "-m", "gpustack.cli.plugin_found", *([only] if only else [])]
    patience = _ALONE if only else _LOADING
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired as error:
        who = "it was" if only else "the plugins were"
        raise GPUStackError(f"{who} not loaded within {patience:.0f} s") from error
    try:
        documents = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        who = "it" if only else "the plugins"
        raise GPUStackError(
            f"a process that loads {who} ends with status {done.returncode}: {last}"
        ) from error
    return [
        Found(**{**each, "brings": tuple((one["kind"], one["name"]) for one in each["brings"])})
        for each in documents
    ]


def _main() -> None:
    found = here(*sys.argv[1:])
    print(json.dumps([each.document() for each in found]))


if __name__ == "__main__":
    _main()
