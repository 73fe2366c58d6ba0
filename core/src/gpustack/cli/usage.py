"""What is wrong with what was typed: exit status 2, as the documentation promises."""

from __future__ import annotations

import math
from typing import Any

import click

from gpustack.kit.errors import InvalidInput


class WrongUsage(InvalidInput):
    """What was typed can never work, whatever server is asked."""


class Finite(click.FloatRange):
    """A number within bounds that is one: a range alone lets ``nan`` pass, and ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def not_empty(what: str, text: str) -> str:
    """Return ``text``. Raises WrongUsage when there is nothing in it; ``what`` is as it was typed."""
    if not text.strip():
        raise WrongUsage(f"{what} is empty; leave it out or give one")
    return text
