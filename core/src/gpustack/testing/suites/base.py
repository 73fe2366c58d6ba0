"""What holds for an extension of any kind, and the tools of the suites."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

import pytest
from pydantic import BaseModel, ValidationError

from gpustack.extensions.kinds import KINDS, Kind, defect
from gpustack.plugin import Extension, Host, PluginError, Refused, TryAgain, Verdict
from gpustack.settings.declared import CORE
from gpustack.testing.suites.checks import is_text
from gpustack.testing.suites.sealing import own_folders, sealed

E = TypeVar("E", bound=Extension[Any])
T = TypeVar("T")

#: Seconds that GPUStack gives a plain method.
TIME_LIMIT = 5.0
#: Seconds that a coroutine may keep the event loop from everybody else; GPUStack would stand still meanwhile.
LONGEST_STEP = 1.0


class ExtensionSuite(Generic[E]):
    """The tests for an extension of any kind; the suite of each kind adds its own.

    A plugin's test class says what it is about, and may say more: the class attributes below, and the fixtures
    :meth:`settings` and :meth:`host`, can be overridden.
    """

    #: The class to hold.
    extension: ClassVar[type[Any]]
    #: What its settings are made of, by the names of its options; for options without a default.
    given: ClassVar[Mapping[str, Any]] = {}
    #: Folders whose files are part of the plugin although they are not beside its module.
    own_files: ClassVar[tuple[Path, ...]] = ()
    #: Which of the catalogue's fields it goes to.
    kind: ClassVar[str] = ""

    # What a test class may override -------------------------------------------------------------------------

    @pytest.fixture
    def settings(self) -> BaseModel:
        """The settings of the extension: its defaults, and what ``given`` says."""
        try:
            made: BaseModel = self.extension.settings_type.model_validate(dict(self.given), by_name=True)
        except ValidationError as error:
            names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
            pytest.fail(
                f"{self.extension.__qualname__} cannot be made with its default settings ({names}): give values in the "
                "test class, as in `given = {'acme_url': 'http://127.0.0.1:1'}`"
            )
        return made

    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        """What GPUStack lends: a logger, and folders that are empty."""
        return self.lent(tmp_path)

    @classmethod
    def lent(cls, folder: Path) -> Host:
        """Return what GPUStack lends, with new folders below ``folder``."""
        data, programs = folder / "data", folder / "bin"
        data.mkdir()
        programs.mkdir()
        return Host(log=logging.getLogger(f"test.{cls.extension.name}"), data_dir=data, bin_dir=programs)

    @pytest.fixture
    def make(self, settings: BaseModel, host: Host) -> Callable[[], E]:
        """A function that returns a new object of the extension."""

        def new() -> E:
            try:
                made: E = self.extension(settings, host)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
                pytest.fail(f"{self.extension.__qualname__}(settings, host) cannot be made: {_said(error)}")
            return made

        return new

    @pytest.fixture
    def made(self, make: Callable[[], E]) -> E:
        """One object of the extension, not entered."""
        return make()

    # The tests ------------------------------------------------------------------------------------------------

    def test_the_class_is_one_that_gpustack_loads(self) -> None:
        """It is a subclass of its kind, has a good name and settings_type, and every method in the right colour."""
        reason = defect(self._kind(), self.extension)

        assert reason is None, f"GPUStack would not load the class: {reason}"

    def test_its_settings_can_be_options(self) -> None:
        """Each field becomes an option of ``gpustack start``, whose names must be free."""
        try:
            CORE.adding(self.extension.settings_type, "the plugin")
        except ValueError as error:
            pytest.fail(f"{self.extension.settings_type.__qualname__}: {error}")

    def test_making_it_touches_nothing(self, settings: BaseModel, host: Host) -> None:
        """``__init__`` starts nothing and does no I/O: it is called for a look, too. That belongs in ``__aenter__``."""
        threads = set(threading.enumerate())
        trouble = ""
        with sealed(self._own()) as seen:
            try:
                self.extension(settings, host)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
                trouble = _said(error)

        assert not seen, f"__init__ {seen[0]}; do that in __aenter__"
        assert not trouble, f"{self.extension.__qualname__}(settings, host) cannot be made: {trouble}"
        started = set(threading.enumerate()) - threads
        assert not started, f"__init__ starts a thread ({_names(started)}); do that in __aenter__"

    def test_it_can_be_entered_and_left_again_and_again(self, make: Callable[[], E]) -> None:
        """GPUStack makes a new object for every life, and a process may have several of them, one after the other."""

        async def live() -> None:
            for _ in range(2):
                await self._life(make())

        asyncio.run(live())

    def test_two_of_it_live_side_by_side(self, make: Callable[[], E]) -> None:
        """Two servers embedded in one process have an object each, and share nothing."""

        async def live() -> None:
            first, second = make(), make()
            async with first:
                await self._life(second)

        asyncio.run(live())

    def test_entering_gives_the_object_itself(self, made: E) -> None:
        """``async with extension as it`` is how GPUStack gets what it then calls."""

        async def enter() -> object:
            async with made as entered:
                return entered

        entered = asyncio.run(enter())
        assert entered is made, f"__aenter__ returned {entered!r}; end it with `return self`"

    def test_leaving_hides_nobody_elses_error(self, made: E) -> None:
        """``__aexit__`` is also called when the start of something else failed, which must be heard of."""

        async def leave() -> object:
            await made.__aenter__()
            error = RuntimeError("the start of something else failed")
            # Declared to return nothing, which is what is held here.
            leaving: Callable[..., Awaitable[object]] = made.__aexit__
            return await leaving(RuntimeError, error, None)

        answer = asyncio.run(leave())
        assert not answer, f"__aexit__ returned {answer!r}, which hides the error that it was called with"

    def test_nothing_of_it_is_left_running(self, made: E) -> None:
        """Once left, its tasks and threads have ended: a server that stops cleanly waits for nobody."""
        threads = set(threading.enumerate())

        async def live() -> set[asyncio.Task[Any]]:
            await self._life(made)
            await asyncio.sleep(0)
            return asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task}

        tasks = asyncio.run(live())
        assert not tasks, f"after __aexit__ a task still ran: {', '.join(task.get_name() for task in tasks)}"
        deadline = time.monotonic() + 2.0
        while (left := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, f"after __aexit__ a thread still ran: {_names(left)}"

    # Tools ----------------------------------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _is_about_something(self) -> None:
        if not isinstance(getattr(self, "extension", None), type):
            pytest.fail(f"{type(self).__name__} does not say what it tests: set `extension = YourClass`")

    @classmethod
    def _kind(cls) -> Kind:
        return next(each for each in KINDS if each.field == cls.kind)

    def _own(self) -> tuple[str, ...]:
        return (*own_folders(self.extension), *(str(each.resolve()) for each in self.own_files))

    async def _life(self, extension: E) -> None:
        """Enter and leave."""
        async with extension:
            pass

    def used(self, extension: E, use: Callable[[E], Awaitable[T]]) -> T:
        """Return what ``use`` makes of the entered ``extension``."""

        async def live() -> T:
            async with extension:
                return await use(extension)

        return asyncio.run(live())

    def pure(self, method: Callable[..., T], *args: Any) -> T:
        """Return ``method(*args)`` after holding that it is pure. Raises Refused when it refuses; no other error passes."""
        first = self.answer(method, *args)
        again = self.answer(method, *args)
        name = _name(method)
        assert _comparable(first) == _comparable(again), (
            f"{name} is pure: with the same arguments it gives the same answer, since GPUStack keeps it. "
            f"It gave {first!r}, then {again!r}"
        )
        if isinstance(first, Refused):
            raise first
        return first

    def answer(self, method: Callable[..., T], *args: Any) -> T | Refused:
        """Return what ``method`` answers to ``args``, or the Refused that it raises, after holding how it behaved."""
        name, before = _name(method), copy.deepcopy(args)
        began, outcome, error = time.monotonic(), None, None
        with sealed(self._own()) as seen:
            try:
                outcome = method(*args)
            except BaseException as raised:  # noqa: BLE001  # whatever it is, it is the plugin's
                error = raised
        took = time.monotonic() - began
        assert not seen, f"{name} is pure and looks at nothing but its arguments, but it {seen[0]}"
        assert took < TIME_LIMIT, f"{name} took {took:.1f} s; GPUStack gives it {TIME_LIMIT:g} s"
        assert args == before, f"{name} is pure, but it changed its arguments: {before!r} became {args!r}"
        if error is None:
            if inspect.iscoroutine(outcome):
                outcome.close()
            return cast("T", outcome)  # without an error it is the method's own answer
        if not isinstance(error, Refused):
            if isinstance(error, KeyboardInterrupt):
                raise error
            pytest.fail(
                f"{name}{_shown(args)} raised {_said(error)}: what can never work is told by raising "
                "gpustack.plugin.Refused with a reason; anything else counts as a defect of the plugin"
            )
        self.one_line(str(error), f"the reason that {name} refuses with")
        return error

    def one_line(self, text: object, what: str) -> None:
        """Hold that a person can read ``text``: it is there, and it is one line."""
        assert is_text(text), f"{what} is {text!r}; say it in words"
        assert len(str(text).splitlines()) == 1, (
            f"{what} is more than one line, and is shown as one: {text!r}"
        )

    def verdict(self, verdict: object, what: str) -> Verdict:
        """Hold that it is a Verdict, with a reason when it is a no."""
        assert isinstance(verdict, Verdict), (
            f"{what} returned {verdict!r}; return Verdict.yes() or Verdict.no('the reason')"
        )
        assert isinstance(verdict.ok, bool), f"{what} returned a Verdict whose ok is {verdict.ok!r}, no bool"
        if not verdict.ok:
            self.one_line(verdict.reason, f"the reason of the no of {what}, which people are shown,")
        return verdict

    def waits(self, error: TryAgain, what: str) -> NoReturn:
        """Skip the test, after holding that ``error`` says how long to wait and for what."""
        assert error.after > 0, f"{what} raised TryAgain with after={error.after}; say the seconds to wait"
        self.one_line(str(error), f"the reason that {what} waits with")
        pytest.skip(f"{what} cannot do its work here: {error}")

    async def awaited(self, what: str, coroutine: Awaitable[T], *, seconds: float = 30.0) -> T:
        """Return what ``coroutine`` gives, after holding that it left the event loop to others."""
        longest, running = 0.0, True

        async def tick() -> None:
            nonlocal longest
            while running:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before - 0.01)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(seconds):
                answer = await coroutine
            await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"{what} did not answer within {seconds:g} s")
        finally:
            running = False
            await ticking
        assert longest < LONGEST_STEP, (
            f"{what} kept the event loop for {longest:.1f} s, in which all of GPUStack stands still; "
            "do what blocks in asyncio.to_thread"
        )
        return answer

    def same_from_threads(self, method: Callable[..., T], *args: Any) -> None:
        """Hold that several threads at once get the same answer: one object serves them all."""
        expected = _outcome(method, args)
        with ThreadPoolExecutor(8) as pool:
            answers = [each.result() for each in [pool.submit(_outcome, method, args) for _ in range(32)]]
        wrong = next((each for each in answers if each != expected), None)
        assert wrong is None, (
            f"{_name(method)} is called in several threads at a time; one got {wrong!r}, not {expected!r}"
        )


def error_line(error: BaseException) -> str:
    """Return an error with its kind, as the messages of the suites name it."""
    return _said(error)


def _outcome(method: Callable[..., Any], args: tuple[Any, ...]) -> object:
    try:
        return _comparable(method(*args))
    except PluginError as error:
        return _comparable(error)


def _comparable(answer: object) -> object:
    return (type(answer), str(answer)) if isinstance(answer, PluginError) else answer


def _name(method: Callable[..., Any]) -> str:
    return getattr(method, "__name__", "the method")


def _shown(args: tuple[Any, ...]) -> str:
    text = ", ".join(repr(each) for each in args)
    return f"({text if len(text) < 400 else text[:400] + '…'})"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _names(threads: set[threading.Thread]) -> str:
    return ", ".join(sorted(each.name for each in threads))
