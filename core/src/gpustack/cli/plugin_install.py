"""Installs a plugin and says what became of it; what cannot be used at all goes again."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from gpustack.cli.plugin_environment import Installer, distributions_now, own, plugins_now
from gpustack.cli.plugin_found import Found, afresh
from gpustack.cli.plugin_wanted import Wanted, canonical
from gpustack.kit.errors import GPUStackError


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation brought, and what is wrong, a line each."""

    plugins: list[Found]
    problems: list[str]


def installed(asked: Wanted, by: Installer) -> Installed:
    """Install ``asked`` and return what a process that starts now makes of it.

    What brings no plugin, or a plugin that ends or holds the process that loads it, is removed again, together with
    what it brought along. Raises GPUStackError when nothing was installed.
    """
    before = distributions_now()
    brought = by.install(asked) | {asked.distribution}
    try:
        found = afresh()
    except GPUStackError as error:
        return _with_one_that_breaks_all(brought, before, by, error)
    plugins = [each for each in found if canonical(each.distribution) in brought]
    if not plugins:
        gone = _undone(brought, before, by)
        raise GPUStackError(
            f"{asked.distribution or asked.what} brings no plugin: it has no entry point of the group gpustack; {gone}"
        )
    return Installed(plugins=plugins, problems=[_not_working(each) for each in plugins if not each.works])


def _with_one_that_breaks_all(
    brought: Collection[str], before: Collection[str], by: Installer, error: GPUStackError
) -> Installed:
    """Load each plugin but ours by itself: who was there before is to blame for itself, and who came goes again."""
    plugins: list[Found] = []
    old: list[str] = []
    new: list[str] = []
    advice = (
        "it was here before, and nothing that loads plugins works with it: `gpustack plugins remove {0}`, or "
        "GPUSTACK_PLUGINS_BLOCK={0} until it is mended"
    )
    ours = own()
    for name, distribution, version in sorted(plugins_now()):
        if canonical(distribution) in ours:
            continue
        who = f"plugin {name} ({distribution} {version})"
        came = canonical(distribution) in brought
        try:
            found = [each for each in afresh(name) if each.distribution == distribution]
        except GPUStackError as reason:
            line = f"{who} cannot be loaded: {reason.message}"
            if came:
                new.append(line)
            else:
                old.append(f"{line}; {advice.format(name)}")
        else:
            plugins += found if came else []
    if new:
        gone = _undone(brought, before, by)
        raise GPUStackError("; ".join([*new, gone, *old]))
    working = [_not_working(each) for each in plugins if not each.works]
    return Installed(plugins=plugins, problems=[*working, *(old or [error.message])])


def _not_working(each: Found) -> str:
    return (
        f"{each} does not work: {each.reason}; it stays until `gpustack plugins remove {each.distribution}`"
    )


def _undone(brought: Collection[str], before: Collection[str], by: Installer) -> str:
    """Remove what was not here before, and return what was done."""
    now = distributions_now()
    new = sorted(each for each in brought if each in now and each not in before)
    if not new:
        return "it was here before, perhaps in another version, and stays"
    with suppress(GPUStackError):
        by.remove(*new)
        return f"{', '.join(new)} {'was' if len(new) == 1 else 'were'} removed again"
    return f"{', '.join(new)} could not be removed again, and stays"
