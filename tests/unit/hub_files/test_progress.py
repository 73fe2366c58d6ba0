"""How far a download is, in words."""

from __future__ import annotations

from gpustack.kit.text import GIB, MIB
from gpustack.worker.artifacts.hub import Progress


def test_both_numbers_share_their_unit() -> None:
    progress = Progress(total=4 * GIB, done=int(1.2 * GIB), rate=110 * MIB)
    assert progress.text == "1.2 of 4.0 GiB, 110.0 MiB/s"
    assert round(progress.percent) == 30


def test_units_differ_at_the_beginning() -> None:
    assert Progress(total=4 * GIB, done=3 * MIB).text == "3.0 MiB of 4.0 GiB, 0 B/s"


def test_trouble_takes_the_place_of_the_rate() -> None:
    progress = Progress(total=4 * GIB, done=2 * GIB, trouble="the hub answers 503; trying again in 2 s")
    assert progress.text == "2.0 of 4.0 GiB, the hub answers 503; trying again in 2 s"


def test_nothing_is_known_yet() -> None:
    assert (Progress().text, Progress().percent) == ("preparing the download", 0.0)
