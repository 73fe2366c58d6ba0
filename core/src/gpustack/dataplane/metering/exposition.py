"""The numbers of all gateway processes together, as the text that Prometheus reads."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.dataplane.metering.numbers import index_lines
from gpustack.kit.locks import FileLock


@dataclass(slots=True)
class _Family:
    kind: str
    text: str
    #: By labels, as they are written between braces.
    series: dict[str, list[float]] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()


def render(folder: Path) -> str:
    """Return the sums over all slots in ``folder``, in the text format of Prometheus; empty when there are none.

    It reads a few files in memory and may be called by any process; call it in a thread when ``folder`` is on a disk.
    """
    families: dict[str, _Family] = {}
    for index in sorted(folder.glob("*.index")):
        _add_slot(families, index)
    return "".join(line + "\n" for name, family in sorted(families.items()) for line in _lines(name, family))


def _add_slot(families: dict[str, _Family], index: Path) -> None:
    try:
        content = index.read_bytes()
        raw = index.with_suffix(".values").read_bytes()
    except OSError:
        return
    values = array("d", raw[: len(raw) // 8 * 8])
    alive = _held(index.with_suffix(".lock"))
    for at, line in index_lines(content[: content.rfind(b"\n") + 1]):
        try:
            kind, name, text, labels, label_values, bounds = json.loads(line)
        except ValueError:
            continue
        width = len(bounds) + 2 if kind == "histogram" else 1
        if at + width > len(values) or (kind == "gauge" and not alive):
            continue
        family = families.setdefault(name, _Family(kind, text, bounds=tuple(bounds)))
        if family.kind != kind or family.bounds != tuple(bounds):
            continue  # an older version counted otherwise
        key = ",".join(
            f'{label}="{_escaped(value)}"' for label, value in zip(labels, label_values, strict=False)
        )
        sums = family.series.setdefault(key, [0.0] * width)
        for place in range(width):
            sums[place] += values[at + place]


def _held(lock: Path) -> bool:
    """Tell whether a living process counts in the slot. A lock held for this look only disturbs nobody for long."""
    look = FileLock(lock)
    try:
        if not look.acquire():
            return True
    except OSError:
        return False
    look.release()
    return False


def _lines(name: str, family: _Family) -> Iterator[str]:
    yield f"# HELP {name} {family.text}"
    yield f"# TYPE {name} {family.kind}"
    for labels, sums in sorted(family.series.items()):
        if family.kind != "histogram":
            yield f"{name}{{{labels}}} {_number(sums[0])}" if labels else f"{name} {_number(sums[0])}"
            continue
        before = f"{labels}," if labels else ""
        total = 0.0
        for bound, count in zip((*family.bounds, math.inf), sums[:-1], strict=True):
            total += count
            edge = "+Inf" if bound == math.inf else _number(bound)
            yield f'{name}_bucket{{{before}le="{edge}"}} {_number(total)}'
        suffix = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{suffix} {_number(sums[-1])}"
        yield f"{name}_count{suffix} {_number(total)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
