"""A clock of one's own for a process and all that it starts: wrong by as much as a file says, at any moment.

A library of a few lines, compiled on the spot and preloaded, stands for a machine whose clock nobody has set.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *wrong_by;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(0, sizeof *wrong_by, PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) wrong_by = found;
    close(fd);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(which, now);
    if (!status && wrong_by && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += *wrong_by;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (told) *told = exact.tv_sec;
    return exact.tv_sec;
}
"""


@dataclass(frozen=True)
class Clock:
    """One wrong clock; ``env`` is the environment of who goes by it."""

    library: Path
    offset: Path

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "TEST_CLOCK": str(self.offset)}

    def set(self, seconds: int) -> None:
        """Make it wrong by that much from now on, also for who runs already."""
        with self.offset.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def why_not() -> str:
    """Return why there can be no such clock here; empty when there can."""
    return "" if shutil.which("cc") or shutil.which("gcc") else "a wrong clock needs a C compiler"


def a_clock(folder: Path, seconds: int) -> Clock:
    """Return a clock that is wrong by so many seconds."""
    source, library, offset = folder / "clock.c", folder / "clock.so", folder / "clock.offset"
    source.write_text(_SOURCE)
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    offset.write_bytes(struct.pack("q", seconds))
    return Clock(library, offset)
