"""Takes away environments that nobody needs: on request, and those that were not used for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpustack.kit.errors import Conflict
from gpustack.worker.artifacts.folders import discard, refuse_used
from gpustack.worker.artifacts.installer import ArtifactInstaller
from gpustack.worker.artifacts.receipts import Held, note_use, read_receipt, remove_receipt
from gpustack.worker.artifacts.wheels import Wheels

log = logging.getLogger(__name__)

#: A backend, a version and a deployment's packages: what an environment is made from.
Key = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """How long environments may be unused, and what is kept nevertheless."""

    seconds: float
    wanted: Collection[Key]


def key_of(held: Held) -> Key:
    """Return what the environment is made from."""
    return held.receipt.backend, held.receipt.version, tuple(held.receipt.extras)


def due(held: Iterable[Held], unused: Unused, now: datetime) -> list[Held]:
    """Return those that nobody wants and that were not used for so long. Pure."""
    return [
        each
        for each in held
        if key_of(each) not in unused.wanted and (now - each.last_used).total_seconds() >= unused.seconds
    ]


async def collect(installer: ArtifactInstaller, unused: Unused) -> list[Held]:
    """Take away what is due and runs nowhere on this machine; return it. What runs counts as used now."""
    held = [
        each
        for each in await asyncio.to_thread(installer.environments)
        # What was imported cannot be fetched again.
        if installer.root_of(each) is not None and not Wheels(installer.home, each.link.name).exists()
    ]
    gone: list[Held] = []
    for each in due(held, unused, datetime.now(UTC)):
        try:
            await take_away(installer, each, unless_used_since=each.last_used)
        except Conflict:
            await asyncio.to_thread(note_use, each.link)
        except OSError as error:
            log.warning("%s cannot be removed: %s", each.link, error.strerror)
        else:
            gone.append(each)
    return gone


async def take_away(
    installer: ArtifactInstaller, held: Held, *, unless_used_since: datetime | None = None
) -> None:
    """Take an environment away, whether its backend is known or not.

    Raises Conflict with one line while something runs from it, when another GPUStack installed it, or where it was used
    since that time; OSError.
    """
    root = installer.root_of(held)
    if root is None:
        raise Conflict(
            f"{held.link} leads to {held.folder}, which another GPUStack installed; remove it there, with its --data-dir"
        )
    async with installer.alone(held.link.name, lambda _line: None, root):
        await asyncio.to_thread(_take_away, installer, root, held, unless_used_since)
    installer.changed()


def _take_away(
    installer: ArtifactInstaller, root: Path, held: Held, unless_used_since: datetime | None
) -> None:
    refuse_used(held.link, held.folder)
    if unless_used_since is not None and (latest := _latest(installer, held)) and latest > unless_used_since:
        raise Conflict(f"{held.link.name} was used meanwhile")
    # First, so that nobody takes it for proven meanwhile.
    remove_receipt(held.link)
    discard(root, installer.bin_dir, held.folder)
    held.link.unlink(missing_ok=True)
    Wheels(installer.home, held.link.name).forget()


def _latest(installer: ArtifactInstaller, held: Held) -> datetime | None:
    if read_receipt(held.link) is None:
        return None
    return next((each.last_used for each in installer.environments() if each.link == held.link), None)
