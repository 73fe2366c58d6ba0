"""The first process of a container, which has the duties that a machine's init has elsewhere.

It reaps what nobody else waits for, hands signals on, and ends when the program it was started for ends. When
that program is killed, it starts it again: the engines, which are in this container too, would otherwise end
with it. Run as ``python -I -S init.py COMMAND…``: an interpreter as small as can be, which stays for months.
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: How often a program that is killed is started again, unless it has run for a while in between.
ATTEMPTS = 5
STABLE = 60.0
#: What the system says of a signal that no process sent, such as that of a terminal, which all of us get.
_FROM_KERNEL = 0x80


def serve_as_init() -> None:
    """Become init, and this program its child, when this is the first process of a container; else return."""
    if sys.platform != "linux" or os.getpid() != 1:
        return
    # Blocked ones wait until init asks for them; the first process would never get those it has no handler for.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, *sys.orig_argv])


class Init:
    """Keeps ``command``, a program with its arguments, running until it ends by itself or is asked to."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._signals = signal.valid_signals()
        self._asked = False
        self._killed = 0
        self._child = 0
        self._began = 0.0

    def run(self) -> int:
        """Return the exit status of the program as a shell gives it: 128 + N when signal N killed it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._start()
        while True:
            got = signal.sigwaitinfo(self._signals)
            if got.si_signo == signal.SIGCHLD:
                status = self._reap()
                if status is not None and not self._again(status):
                    return status if status >= 0 else 128 - status
            elif got.si_code != _FROM_KERNEL:
                self._asked |= got.si_signo in (signal.SIGTERM, signal.SIGINT)
                os.kill(self._child, got.si_signo)

    def _start(self) -> None:
        self._began = time.monotonic()
        # Python ignores two signals, which a program would inherit.
        self._child = os.posix_spawnp(
            self._command[0],
            self._command,
            os.environ,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )

    def _reap(self) -> int | None:
        """Reap all that has ended; returns the exit status of the program (-N for signal N) if it was among them."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == self._child:
                found = os.waitstatus_to_exitcode(status)

    def _again(self, status: int) -> bool:
        """Start the program again when it was killed and nobody had asked for its end; tell whether that was done."""
        if time.monotonic() - self._began > STABLE:
            self._killed = 0
        self._killed += 1
        if status >= 0 or self._asked or self._killed > ATTEMPTS:
            return False
        sys.stderr.write(f"gpustack was killed by signal {-status}; starting it again\n")
        self._start()
        return True


if __name__ == "__main__":
    sys.exit(Init(sys.argv[1:]).run())
