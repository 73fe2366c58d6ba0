"""What a fuzzer tries on each parser of the data path, and what has to hold whatever it tries.

:data:`TARGETS` are used by ``tests/fuzz/run.py``, which looks for new inputs, and by the usual tests, which run those
that are stored in ``tests/fuzz/corpus``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from support.fuzzing import answers, bodies, forms, messages, records, requests, streams

#: Where inputs are stored, in a folder for each target.
CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser. ``run`` raises AssertionError for an input by which something does not hold."""

    name: str
    run: Callable[[bytes], None]
    #: Inputs to begin with.
    seeds: Callable[[], Iterable[bytes]]
    #: Pieces that inputs are likely to need.
    words: tuple[bytes, ...] = ()

    def stored(self) -> list[Path]:
        """Return the inputs that are kept."""
        return sorted(path for path in (CORPUS / self.name).glob("*") if path.is_file())


TARGETS = {
    each.name: each
    for each in (
        Target(name="requests", run=requests.run, seeds=requests.seeds, words=requests.WORDS),
        Target(name="answers", run=answers.run, seeds=answers.seeds, words=answers.WORDS),
        Target(name="bodies", run=bodies.run, seeds=bodies.seeds, words=bodies.WORDS),
        Target(name="forms", run=forms.run, seeds=forms.seeds, words=forms.WORDS),
        Target(name="streams", run=streams.run, seeds=streams.seeds, words=streams.WORDS),
        Target(name="documents", run=streams.run_document, seeds=streams.documents, words=streams.WORDS),
        Target(name="records", run=records.run, seeds=records.seeds, words=records.WORDS),
        Target(name="messages", run=messages.run, seeds=messages.seeds, words=messages.WORDS),
    )
}
