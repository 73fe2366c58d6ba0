"""Looks for inputs that break what :mod:`support.fuzzing` says of the data path's parsers: ``make fuzz``.

    python tests/fuzz/run.py                       all targets, a minute each
    python tests/fuzz/run.py requests --seconds 600
    python tests/fuzz/run.py --keep                store what has been found to reach code that no stored input reaches

Needs atheris (``requirements/fuzz.txt``), libFuzzer for Python: inputs that take a branch which none took before are kept
and changed further, in ``.cache/fuzz``. What breaks something lands in ``.cache/fuzz/broken``; once it is mended, it belongs
into the stored corpus, which the usual tests run through.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "fuzz"
BROKEN = WORK / "broken"
#: Bytes of one input. Longer ones find little that shorter ones do not, and fill the repository.
LONGEST = 1500
#: What is watched for branches: the parsers, and the readers they are held against.
WATCHED = ["gpustack.dataplane.http", "gpustack.dataplane.metering", "gpustack.dataplane.table", "support"]
#: Different failures of one target, after which it ends.
_ENOUGH = 20


def main() -> int:
    """Run the targets one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers of the data path.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which; all without any")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to the stored corpus")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    sys.path[:0] = [str(ROOT / "tests")]
    if options.inside:
        return _fuzz(options.targets[0], options.seconds, keep=options.keep, more=rest)
    if rest:
        parser.error(f"there is no {rest[0]}")
    from support.fuzzing import TARGETS

    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    more = ["--keep"] if options.keep else []
    broken = 0
    for name in options.targets or TARGETS:
        print(f"--- {name}", flush=True)
        command = [sys.executable, __file__, name, "--inside", "--seconds", str(options.seconds), *more]
        for old in BROKEN.glob(f"{name}-*"):
            old.unlink()
        # libFuzzer ends its process by itself, whatever came out of it.
        failed = subprocess.run(command, check=False).returncode != 0
        found = sorted(BROKEN.glob(f"{name}-*.txt"))
        for each in found:
            print(f"{name}: {each.relative_to(ROOT)}: {each.read_text().rstrip().splitlines()[-1]}")
        broken += failed or bool(found)
    return 1 if broken else 0


def _fuzz(name: str, seconds: int, *, keep: bool, more: list[str]) -> int:
    try:
        import atheris
    except ImportError:
        print("fuzzing needs atheris: `make fuzz` installs it", file=sys.stderr)
        return 2
    logging.disable()
    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        from support.fuzzing import TARGETS
    target = TARGETS[name]
    found, words = WORK / name, WORK / f"{name}.words"
    found.mkdir(parents=True, exist_ok=True)
    stored = ROOT / "tests" / "fuzz" / "corpus" / name
    stored.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (found / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in target.words]
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    trouble = _Trouble(name)

    def once(data: bytes) -> None:
        try:
            target.run(data)
        except Exception as error:
            trouble.note(data, error)

    arguments = [f"-max_len={LONGEST}", "-verbosity=0", f"-artifact_prefix={BROKEN}/{name}-"]
    if more:
        arguments += more
    elif keep:
        # By branches alone: how often each is taken makes ten times as many files.
        arguments += ["-merge=1", "-use_counters=0", str(stored), str(found)]
    else:
        arguments += [f"-max_total_time={seconds}", "-timeout=10", f"-dict={words}", "-print_final_stats=1"]
        arguments += [str(found), str(stored)]
    # For a merge libFuzzer starts itself again, by a shell.
    itself = f"{sys.executable} {__file__} {name} --inside --keep"
    atheris.Setup([itself, *arguments], once)
    atheris.Fuzz()
    return 0


class _Trouble:
    """What broke: one input for each place in the code, the shortest."""

    def __init__(self, name: str) -> None:
        BROKEN.mkdir(parents=True, exist_ok=True)
        self._name = name
        self.known: dict[str, tuple[bytes, str]] = {}

    def note(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].lineno}"
        before = self.known.get(place)
        if before is not None and len(before[0]) <= len(data):
            return
        self.known[place] = (data, "".join(traceback.format_exception(error)))
        number = hashlib.sha1(place.encode()).hexdigest()[:8]
        (BROKEN / f"{self._name}-{number}").write_bytes(data)
        (BROKEN / f"{self._name}-{number}.txt").write_text(f"{data!r}\n\n{self.known[place][1]}")
        if before is None:
            print(f"{self._name}: {place}: {error}\n    {data[:200]!r}", flush=True)
        if len(self.known) > _ENOUGH:
            raise SystemExit(f"{self._name}: too many failures")


if __name__ == "__main__":
    sys.exit(main())
