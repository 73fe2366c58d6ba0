"""Ports: each once in our own set, free, and out of the way of the system's own choice."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpustack.app import sockets
from gpustack.app.checks.finding import Finding
from gpustack.client.local import read_state
from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import holder, refusal
from gpustack.kit.process import command_line
from gpustack.settings.kinds import PortRange
from gpustack.settings.load import Loaded

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_SERVER = (
    "port",
    "tls_port",
    "api_port",
    "metrics_port",
    "ray_port",
    "ray_client_server_port",
    "ray_dashboard_port",
)
_WORKER = ("worker_port", "worker_metrics_port", "service_port_range", "distributed_worker_port_range")
_BOTH = (
    "ray_node_manager_port",
    "ray_object_manager_port",
    "ray_runtime_env_agent_port",
    "ray_dashboard_agent_grpc_port",
    "ray_dashboard_agent_listen_port",
    "ray_metrics_export_port",
)


@dataclass(frozen=True, slots=True)
class _Use:
    """Ports from ``first`` to ``last`` that an option takes."""

    name: str
    first: int
    last: int
    #: This version does not open them yet, or takes others where they are not free, as for Ray.
    spare: bool

    def overlaps(self, other: _Use) -> bool:
        return self.first <= other.last and other.first <= self.last

    @property
    def single(self) -> bool:
        return self.first == self.last


def used_twice(loaded: Loaded) -> Iterator[Finding]:
    """Find two options that have a port in common."""
    for one, other in itertools.combinations(_uses(loaded), 2):
        if not one.overlaps(other):
            continue
        names = (one.name, other.name)
        given = any(name in loaded.given for name in names)
        if one.spare or other.spare:
            # Nothing depends on them, and nobody chose the two defaults.
            if given:
                yield Finding(level="warning", options=names, text=_twice(loaded, one, other))
        else:
            yield Finding(level="problem", options=names, text=_twice(loaded, one, other))


def _twice(loaded: Loaded, one: _Use, other: _Use) -> str:
    first, second = loaded.origin(one.name), loaded.origin(other.name)
    if one.single and other.single:
        return f"{first} and {second} are both {one.first}; give two ports"
    if one.single or other.single:
        port, span = (one, other) if one.single else (other, one)
        return (
            f"{loaded.origin(port.name)} {port.first} is inside {loaded.origin(span.name)} {span.first}-{span.last}; "
            "give a port outside of it"
        )
    return (
        f"{first} {one.first}-{one.last} and {second} {other.first}-{other.last} overlap; give ranges without a port "
        "in common"
    )


def _uses(loaded: Loaded) -> list[_Use]:
    settings = loaded.settings
    names = list(_BOTH)
    if not settings.server_url:
        names += _SERVER
    if not settings.disable_worker:
        names += _WORKER
    unused = {
        # Whoever names it means to use it, with certificates that may come later.
        "tls_port": settings.ssl_certfile is None and "tls_port" not in loaded.given,
        "metrics_port": settings.disable_metrics,
        "worker_metrics_port": settings.disable_metrics or settings.disable_worker_metrics,
    }
    found = []
    for name in (name for name in loaded.options if name in names and not unused.get(name)):
        value = getattr(settings, name)
        spare = bool(loaded.options[name].option.later) or name.startswith("ray_")
        if isinstance(value, PortRange):
            found.append(_Use(name, value.first, value.last, spare))
        elif value:  # 0 is any free one
            found.append(_Use(name, value, value, spare))
    return found


def taken(loaded: Loaded) -> Iterator[Finding]:
    """Find ports that another program has, or that this user may not have."""
    for want in sockets.wanted(loaded.settings.model_dump(mode="json")).values():
        if not want.port:
            continue
        line = refusal(want.port, host=want.host, option=_flag(loaded, want.option))
        if line and not _ours(loaded, want.port):
            yield Finding(level="problem", options=(want.name,), text=line)


def _flag(loaded: Loaded, flag: str) -> str:
    name = flag.removeprefix("--").replace("-", "_")
    return flag if name not in loaded.given else loaded.given[name].origin


def _ours(loaded: Loaded, port: int) -> bool:
    """Tell whether the GPUStack of the same data directory has the port: a new start takes it over, or says it runs."""
    with contextlib.suppress(GPUStackError):
        state = read_state(loaded.settings.data_dir)
        if state is not None and state.running and port in state.ports.values():
            return True
    # What outlives its supervisor, such as a door.
    pid = holder(port)
    words = [] if pid is None else command_line(pid)
    return (
        bool(words)
        and words[-1] == str(loaded.settings.data_dir)
        # Not the directory itself, which often has that name, too.
        and any(each.startswith("gpustack.app.") for each in words[:-1])
    )


def ephemeral(loaded: Loaded) -> Iterator[Finding]:
    """Warn of ports that the system gives to any outgoing connection."""
    try:
        low, high = map(int, _EPHEMERAL.read_text(encoding="ascii").split())
        reserved = _RESERVED.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return  # another system than Linux
    ours = [use for use in _uses(loaded) if not use.spare and use.first <= high and use.last >= low]
    kept = _ports(reserved)
    ours = [use for use in ours if not set(range(max(use.first, low), min(use.last, high) + 1)) <= kept]
    if not ours:
        return
    spans = [f"{use.first}" if use.single else f"{use.first}-{use.last}" for use in ours]
    named = ", ".join(f"{loaded.origin(use.name)} {span}" for use, span in zip(ours, spans, strict=True))
    setting = ",".join(filter(None, [reserved, *spans]))
    chosen = any(use.name in loaded.given for use in ours)
    yield Finding(
        level="warning" if chosen else "hint",
        options=tuple(use.name for use in ours),
        text=f"{named}: the system gives ports from {low} to {high} to outgoing connections, so one of these may be "
        f"taken; reserve them with `sysctl -w net.ipv4.ip_local_reserved_ports={setting}`",
    )


def _ports(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
