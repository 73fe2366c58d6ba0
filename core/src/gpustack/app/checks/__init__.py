"""What is looked at before anything is started: files, places, ports and URLs that the settings name.

    found = examine(flags, catalogue.options)
    found.problems, found.warnings

All that is wrong is found in one go, with what was wrong in the settings themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpustack.app.checks import addresses, files, gateways, places, ports
from gpustack.app.checks.finding import Finding
from gpustack.kit.errors import SettingsError
from gpustack.settings.declared import Options
from gpustack.settings.load import Flags, Loaded, read
from gpustack.settings.model import Settings

Check = Callable[[Loaded], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    addresses.database,
    addresses.interface,
    files.certificate,
    files.readable_secrets,
    gateways.mode,
    places.directories,
    places.full_disks,
    ports.used_twice,
    ports.taken,
    ports.ephemeral,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """The settings with all that is wrong with them, and all that somebody should know; a line each."""

    loaded: Loaded
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    #: What holds for the defaults, too: worth a line only for who asks.
    hints: tuple[str, ...]

    def settings(self) -> Settings:
        """Return the settings. Raises SettingsError with a line for each problem."""
        if self.problems:
            raise SettingsError("\n".join(self.problems))
        return self.loaded.settings


def examine(flags: Flags, options: Options) -> Examined:
    """Read the settings and look at what they name. Nothing is made or changed."""
    loaded = read(flags, options)
    findings = [
        finding
        for check in CHECKS
        for finding in check(loaded)
        # What it says of a default that stands for something wrong is of no use.
        if not loaded.wrong & set(finding.options)
    ]

    def lines(level: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.text for each in findings if each.level == level))

    return Examined(
        loaded=loaded,
        problems=(*loaded.problems, *lines("problem")),
        warnings=(*loaded.warnings, *lines("warning")),
        hints=lines("hint"),
    )
