"""Turns the declared options into flags of a click command.

Values stay the text that was typed; they are checked with those of the other sources, in one place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from gpustack.settings.declared import Declared, Options
from gpustack.settings.option import GROUPS, Group

#: PowerShell keeps these for its CommonParameters.
_NOT_ON_WINDOWS = {"-d"}


class DeclaredOption(click.Option):
    """A flag made from a declaration."""

    def __init__(self, declared: Declared) -> None:
        short = declared.option.short
        # By its own name first, which click would make one of from the flag.
        names = [declared.name, declared.flag]
        if short and not (sys.platform == "win32" and short in _NOT_ON_WINDOWS):
            names.append(short)
        kwargs: dict[str, Any] = {"metavar": declared.metavar}
        if declared.switch:
            # `--debug`, and `--debug true` as the reference page has it.
            kwargs = {"is_flag": False, "flag_value": "true", "metavar": "[true|false]"}
        elif declared.repeatable:
            kwargs["multiple"] = True
        super().__init__(names, type=str, default=None, help=_help(declared), **kwargs)
        self.group: Group = declared.group
        self.switch = declared.switch


def _help(declared: Declared) -> str:
    default = declared.default_shown
    return f"{declared.help}  [default: {default}]" if default else declared.help


class GroupedCommand(click.Command):
    """A command whose help shows its options under their groups' headings, and whose switches have a ``--no-`` form.

    Its declared ``options`` come before its other parameters. They are asked for when they are needed: plugins have to be
    loaded for them.
    """

    def __init__(self, *args: Any, options: Callable[[], Options] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = options

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters, those of the declared options first."""
        if self._options is not None:
            self.params = [*click_options(self._options()), *self.params]
            self._options = None
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Understand ``--no-debug`` as ``--debug false``."""
        parameters = self.get_params(ctx)
        flags = {name for parameter in parameters for name in parameter.opts}
        negated = {
            no: name
            for parameter in parameters
            if isinstance(parameter, DeclaredOption) and parameter.switch
            for name in parameter.opts
            if name.startswith("--") and (no := f"--no-{name.removeprefix('--')}") not in flags
        }
        return super().parse_args(
            ctx, [f"{negated[each]}=false" if each in negated else each for each in args]
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each group, and one for the options that belong to none."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                blocks.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for title in (*GROUPS, "Other"):
            if rows := blocks.get(title):
                with formatter.section(f"{title} Options"):
                    formatter.write_dl(rows)


def click_options(options: Options) -> list[click.Parameter]:
    """Return a click parameter for each declared option that has a flag."""
    return [DeclaredOption(option) for option in _by_group(options.values()) if option.flag]


def _by_group(options: Iterable[Declared]) -> list[Declared]:
    return sorted(options, key=lambda each: GROUPS.index(each.group))


def typed(values: Mapping[str, Any]) -> dict[str, str | Sequence[str]]:
    """Return of a command's parameters those that were typed, as :func:`gpustack.settings.load.read` takes them."""
    return {
        name: list(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None and value != ()
    }
