"""Turns the declared options into flags of a click command.

Values stay the text that was typed; they are checked with those of the other sources, in one place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from gpustack.settings.options import OPTIONS, Group, Option


class DeclaredOption(click.Option):
    """A flag made from a declaration."""

    def __init__(self, declared: Option) -> None:
        names = [declared.flag, *([declared.short] if declared.short else [])]
        kwargs: dict[str, Any] = {"metavar": declared.value}
        if declared.switch:
            # `--debug`, and `--debug true` as the reference page has it.
            kwargs = {"is_flag": False, "flag_value": "true", "metavar": "[true|false]"}
        super().__init__(names, type=str, default=None, help=_help(declared), **kwargs)
        self.group: Group = declared.group


def _help(declared: Option) -> str:
    default = declared.default_text or ("" if declared.default is None else str(declared.default))
    return f"{declared.help}  [default: {default}]" if default else declared.help


class GroupedCommand(click.Command):
    """A command whose help shows its options under their groups' headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each group, and one for the options that belong to none."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                blocks.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for title in ("Common", "Server", "Worker", "Other"):
            if rows := blocks.get(title):
                with formatter.section(f"{title} Options"):
                    formatter.write_dl(rows)


def click_options(options: Iterable[Option] = OPTIONS) -> list[click.Parameter]:
    """Return a click parameter for each declared option."""
    return [DeclaredOption(option) for option in options]
