"""``gpustack chat``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpustack.cli import complete
from gpustack.cli.output import clean, coloured, emit_json, note
from gpustack.cli.target import Target, json_option, server_options
from gpustack.cli.usage import Finite, WrongUsage
from gpustack.kit.errors import Forbidden, GPUStackError, InvalidInput, NotFound

if TYPE_CHECKING:
    from gpustack.client import Client

T = TypeVar("T")

_HELP = "/reset forgets the conversation, /exit ends it. Ctrl-C stops an answer, Ctrl-D ends."


@click.command("chat")
@click.argument("model", shell_complete=complete.models)
@click.option("--system", default="", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--once", metavar="PROMPT", help="Answer this one prompt and end.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer.")
@click.option("--temperature", type=Finite(0), metavar="T", help="0 gives the likeliest answer.")
@click.option("--verbose", "-v", is_flag=True, help="Show the speed after each answer.")
@server_options
@json_option
def command(
    model: str, system: str, once: str | None, verbose: bool, target: Target, as_json: bool, **options: Any
) -> int:
    """Talk to a model.

    Keeps the conversation until /exit or Ctrl-D; /reset begins anew. With --once, or a prompt on standard input,
    answers that one prompt and ends.
    """
    prompt = once if once is not None else _piped()
    if prompt is not None and not prompt.strip():
        raise WrongUsage("the prompt is empty")
    if as_json and prompt is None:
        raise WrongUsage("--json needs --once PROMPT or a prompt on standard input")
    options = {name: value for name, value in options.items() if value is not None}
    with _session(target, model) as session:
        chat = Conversation(session.client, model, system=system, options=options, quiet=as_json)
        if prompt is None:
            return _talk(session, chat, verbose=verbose)
        answer = session.run(chat.ask(prompt))
        if as_json:
            emit_json({"model": model, **answer.document()})
        elif verbose:
            note(answer.speed())
    return 0


def _piped() -> str | None:
    return None if sys.stdin.isatty() else sys.stdin.read()


@dataclass(slots=True)
class Answer:
    """One answer and what it took."""

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    #: Seconds to the first piece, and to the last.
    first: float = 0.0
    total: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"text": self.text, "finish_reason": self.finish_reason, "usage": usage, "seconds": self.total}

    def speed(self) -> str:
        """Return how fast it came; tokens a second count from the first piece on."""
        count = self.completion_tokens
        if count is None:
            return f"{self.total:.2f} s, first text after {self.first:.2f} s"
        rate = (count - 1) / (self.total - self.first) if count > 1 and self.total > self.first else 0.0
        speed = f", {rate:.1f} tokens/s" if rate else ""
        return f"{count} tokens in {self.total:.2f} s, first after {self.first:.2f} s{speed}"


@dataclass(slots=True)
class Conversation:
    """What was said so far with one model."""

    client: Client
    model: str
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    #: Print nothing.
    quiet: bool = False
    said: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything but the system's words."""
        self.said.clear()

    async def ask(self, prompt: str) -> Answer:
        """Send ``prompt`` with all before it, print the answer as it comes, and keep both.

        A stopped answer is kept as far as it came; when nothing came, the prompt is forgotten too.
        """
        self.said.append({"role": "user", "content": prompt})
        answer = Answer()
        try:
            await self._stream(answer)
        finally:
            if answer.text:
                self.said.append({"role": "assistant", "content": answer.text})
            else:
                self.said.pop()
            if not self.quiet:
                _write("\n")
        return answer

    async def _stream(self, answer: Answer) -> None:
        system = [{"role": "system", "content": self.system}] if self.system else []
        began = time.monotonic()
        stream = self.client.chat_stream(self.model, [*system, *self.said], **self.options)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                answer.total = time.monotonic() - began
                answer.first = answer.first or answer.total
                answer.text += piece.text
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                if piece.completion_tokens is not None:
                    answer.prompt_tokens, answer.completion_tokens = (
                        piece.prompt_tokens,
                        piece.completion_tokens,
                    )
                if not self.quiet:
                    _show(piece.text, piece.reasoning)


def _show(text: str, reasoning: str) -> None:
    """Print a piece; what a model thinks is for people only, and dim."""
    if reasoning and coloured():
        _write(click.style(clean(reasoning, keep="\n\t"), dim=True))
    if text:
        _write(clean(text, keep="\n\t\u200d") if sys.stdout.isatty() else text)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Session:
    """One event loop and client for a whole conversation."""

    def __init__(self, runner: asyncio.Runner, client: Client) -> None:
        self._runner = runner
        self.client = client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work``; Ctrl-C cancels it and raises KeyboardInterrupt."""
        return self._runner.run(work)


@contextlib.contextmanager
def _session(target: Target, model: str) -> Iterator[_Session]:
    connection = target.connection()
    with asyncio.Runner() as runner:
        client = connection.client()
        session = _Session(runner, client)
        try:
            session.run(_check(client, model))
            yield session
        finally:
            session.run(client.close())


async def _check(client: Client, name: str) -> None:
    """Raise one line when ``name`` cannot chat. A key limited to some models may not look, and need not."""
    from gpustack.cli.deploy import example

    try:
        model = await client.models.by_name(name)
    except Forbidden:
        return
    except NotFound:
        if name in await client.routes.names():
            return  # the gateway tells what is wrong with it
        raise
    if model.categories and "llm" not in model.categories:
        kind = " and ".join(model.categories)
        raise InvalidInput(
            f"{name} is a model for {kind} and does not chat; use {example(client.base_url, model)}"
        )


def _talk(session: _Session, chat: Conversation, *, verbose: bool) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its editing and history
    note(_HELP)
    interrupted = False
    while True:
        try:
            prompt = input("> ").strip()
            interrupted = False
        except EOFError:
            note("")
            return 0
        except KeyboardInterrupt:
            if interrupted:
                note("")
                return 0
            interrupted = True
            note("\nCtrl-C once more, Ctrl-D or /exit ends.")
            continue
        if prompt in ("/exit", "/quit", "/bye"):
            return 0
        if prompt == "/reset":
            chat.reset()
            note("The conversation is forgotten.")
        elif prompt.startswith("/"):
            note(_HELP)
        elif prompt:
            _turn(session, chat, prompt, verbose=verbose)


def _turn(session: _Session, chat: Conversation, prompt: str, *, verbose: bool) -> None:
    """Ask once; trouble with one answer does not end the conversation."""
    try:
        answer = session.run(chat.ask(prompt))
        if verbose:
            note(answer.speed())
    except KeyboardInterrupt:
        note("(stopped)")
    except GPUStackError as error:
        note(f"Error: {error}")
