"""Shows the steps of a deployment: a live view on a terminal, a line each elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from gpustack.cli.output import clean, coloured, first_line, on_terminal
from gpustack.lifecycle.engine import will_retry

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table

    from gpustack.cli.rollout import Step


class Progress(AbstractContextManager["Progress"], Protocol):
    """Something that shows steps."""

    def show(self, step: Step) -> None:
        """Show one step."""


class NoProgress:
    """Shows nothing, for ``--json``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, step: Step) -> None:
        """Show nothing."""


class Lines:
    """One line for each step, with the seconds since the beginning; of a download one now and then."""

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        #: State, percent and time of the last line, by instance.
        self._shown: dict[str, tuple[str, float, float]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, step: Step) -> None:
        """Print the step."""
        now = time.monotonic()
        if self._is_soon(step, now):
            return
        self._shown[step.instance] = (step.state, step.percent or 0.0, now)
        seconds = now - self._began
        message = clean(first_line(step.message))
        click.echo(
            f"{seconds:6.1f} s  {clean(step.instance)}  {step.state}{': ' + message if message else ''}"
        )

    def _is_soon(self, step: Step, now: float) -> bool:
        """Tell whether a download has hardly gone on since it was shown."""
        state, percent, when = self._shown.get(step.instance, (None, 0.0, 0.0))
        if step.percent is None or state != step.state or will_retry(step.message):
            return False
        return step.percent - percent < _STEP and now - when < _PAUSE


class LiveView:
    """Each instance's phases with their times, redrawn in place."""

    def __init__(self) -> None:
        self._phases: dict[str, list[tuple[str, float, str]]] = {}
        self._live: Live
        self._spinner: Spinner

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        # One for all drawings: a new one would always show its first frame.
        self._spinner = Spinner("dots")
        console = Console(highlight=False, no_color=not coloured())
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8)
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, step: Step) -> None:
        """Add the step to its instance's phases."""
        said = step.message if step.percent is None else f"{bar(step.percent)} {step.message}"
        phases = self._phases.setdefault(step.instance, [])
        if phases and phases[-1][0] == step.state:
            phases[-1] = (step.state, phases[-1][1], said)
        else:
            phases.append((step.state, time.monotonic(), said))

    def _draw(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        now = time.monotonic()
        for name, phases in self._phases.items():
            table.add_row("", Text(clean(name), style="bold"))
            ends = [*(begun for _, begun, _ in phases[1:]), None]
            for (state, begun, message), end in zip(phases, ends, strict=True):
                resting = state in _RESTING
                mark = Text(*_RESTING.get(state, _PASSED)) if resting or end else self._spinner
                took = "" if resting else f"{(end or now) - begun:.1f} s"
                said = clean(first_line(message))
                table.add_row(mark, Text(str(state)), Text(took, style="dim"), Text(said, style="dim"))
        return table


def bar(percent: float, *, width: int = 20) -> str:
    """Return ``percent`` as a bar with the number behind it."""
    done = round(width * percent / 100)
    return f"{'█' * done}{'░' * (width - done)} {percent:3.0f} %"


#: Percent and seconds between two lines about one download.
_STEP, _PAUSE = 10.0, 10.0
#: Mark and style of a phase that was passed, and of those an instance may stay in.
_PASSED = ("✓", "green")
_RESTING = {"running": ("✓", "green"), "error": ("✗", "red"), "draining": ("·", "dim")}


def progress(*, quiet: bool) -> Progress:
    """Return what suits standard output."""
    if quiet:
        return NoProgress()
    return LiveView() if on_terminal() else Lines()
