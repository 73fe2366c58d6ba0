"""A plugin's method may raise or hang; its caller gets one line in time."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from gpustack.extensions import Guard
from gpustack.kit.threads import MOST
from gpustack.plugin import PluginError, Refused, TryAgain


@pytest.fixture
def door() -> Iterator[threading.Event]:
    """What a hanging method waits for; opened at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_the_answer_comes_back() -> None:
    assert await Guard.call("acme", max, 3, 5) == 5


async def test_a_refusal_passes_unchanged() -> None:
    refusal = Refused("no such version")

    def artifact() -> None:
        raise refusal

    with pytest.raises(Refused) as caught:
        await Guard.call("acme", artifact)
    assert caught.value is refusal


@pytest.mark.parametrize(
    "error", [ValueError("bad\nworse"), StopIteration(), SystemExit(2), KeyboardInterrupt()]
)
async def test_a_defect_is_one_line_with_the_plugins_name(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def estimate() -> None:
        raise error

    with pytest.raises(PluginError, match=f"^plugin acme: estimate failed: {type(error).__name__}") as caught:
        await Guard.call("acme", estimate)
    assert "\n" not in str(caught.value)
    assert caplog.records[0].exc_info is not None


async def test_a_method_that_hangs_is_left_behind(door: threading.Event) -> None:
    began = time.monotonic()

    with pytest.raises(TryAgain, match=r"plugin hangs: wait did not answer within 0.05 s"):
        await Guard.call("hangs", door.wait, timeout=0.05)

    assert time.monotonic() - began < 1.0


async def test_a_plugin_that_hangs_again_and_again_takes_no_more_threads(door: threading.Event) -> None:
    for _ in range(MOST):
        with pytest.raises(TryAgain):
            await Guard.call("hangs often", door.wait, timeout=0.01)
    threads = sum(thread.name == "plugin hangs often" for thread in threading.enumerate())

    with pytest.raises(TryAgain, match="earlier calls still hang"):
        await Guard.call("hangs often", door.wait, timeout=5)

    assert sum(thread.name == "plugin hangs often" for thread in threading.enumerate()) == threads
    assert await Guard.call("another", max, 1, 2) == 2


async def test_calls_that_hang_at_the_same_time_count_all(door: threading.Event) -> None:
    first = [Guard.call("hangs at once", door.wait, timeout=0.1) for _ in range(5 * MOST)]
    answers = await asyncio.gather(*first, return_exceptions=True)

    assert all(isinstance(answer, TryAgain) for answer in answers)
    # By name: threads of other tests may still be ending.
    assert sum(thread.name.startswith("plugin hangs at once ") for thread in threading.enumerate()) == MOST
    with pytest.raises(TryAgain, match="earlier calls still hang"):
        await Guard.call("hangs at once", door.wait, timeout=5)


async def test_of_one_plugin_a_few_calls_run_at_a_time() -> None:
    running = most = 0
    lock = threading.Lock()

    def work() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return 1

    assert sum(await asyncio.gather(*(Guard.call("busy", work) for _ in range(5 * MOST)))) == 5 * MOST
    assert most == MOST


async def test_an_object_that_hangs_is_no_matter_of_another_one() -> None:
    """Two servers in a process have one each."""

    class Backend:
        def __init__(self) -> None:
            self.door = threading.Event()

        def estimate(self) -> int:
            self.door.wait()
            return 1

    stuck, other = Backend(), Backend()
    other.door.set()
    try:
        for _ in range(MOST):
            with pytest.raises(TryAgain):
                await Guard.call("acme", stuck.estimate, timeout=0.01)
        with pytest.raises(TryAgain, match="still hang"):
            await Guard.call("acme", stuck.estimate)
        assert await Guard.call("acme", other.estimate) == 1
    finally:
        stuck.door.set()


async def test_a_plugin_that_came_back_is_called_again() -> None:
    door = threading.Event()
    for _ in range(MOST):
        with pytest.raises(TryAgain):
            await Guard.call("recovers", door.wait, timeout=0.01)
    door.set()
    for thread in threading.enumerate():
        if thread.name.startswith("plugin recovers"):
            thread.join()
    await asyncio.sleep(0)

    assert await Guard.call("recovers", max, 1, 2) == 2


def test_a_hung_thread_does_not_keep_the_program_from_ending() -> None:
    program = """
import asyncio, time
from gpustack.extensions import Guard
try:
    asyncio.run(Guard.call("hangs", time.sleep, 60, timeout=0.05))
except Exception as error:
    print(error)
"""
    began = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )

    assert "did not answer" in answer.stdout
    assert time.monotonic() - began < 25
