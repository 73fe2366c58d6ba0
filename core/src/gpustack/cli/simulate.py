"""``gpustack simulate``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpustack.cli.output import clean, emit_json, emit_table
from gpustack.cli.target import Target, json_option, server_options
from gpustack.cli.usage import WrongUsage
from gpustack.cli.yaml_places import located, read_text
from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import plural

if TYPE_CHECKING:
    from gpustack.client import Client
    from gpustack.scheduling import Holding, Worker
    from gpustack.scheduling.fleet import Fleet
    from gpustack.scheduling.records import Replayed
    from gpustack.scheduling.simulation import Report

#: As :data:`gpustack.scheduling.simulation.POLICIES`, which are loaded only when they are needed.
POLICY_NAMES = ("whole", "best-fit", "spread", "binpack")
#: Decisions that came out otherwise and are told of.
_MOST_TOLD = 10

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("simulate")
@click.argument("fleet", type=_FILE, required=False)
@click.argument("workload", type=_FILE, required=False)
@click.option(
    "--policy", type=click.Choice(POLICY_NAMES), default="whole", show_default=True, help="How to pack."
)
@click.option("--compare", type=click.Choice(POLICY_NAMES), help="Another policy, on the same workload.")
@click.option("--seed", type=click.IntRange(0), help="Where chance begins; the workload's own without this.")
@click.option(
    "--record", type=_FILE, help="Write the decisions of a server into this file, and simulate nothing."
)
@server_options
@json_option
def command(
    fleet: Path | None,
    workload: Path | None,
    policy: str,
    compare: str | None,
    seed: int | None,
    record: Path | None,
    target: Target,
    as_json: bool,
) -> None:
    """Try what a fleet would do with a workload, or decide recorded decisions again.

    The real scheduler places the requests of WORKLOAD on FLEET, in made-up time and without a server. FLEET describes workers
    in YAML, or is a file that --record has written. Such a file alone is decided again, decision by decision; the exit
    status is 1 when one comes out otherwise. The same files and seed always give the same answer.
    """
    if record is not None:
        if fleet is not None:
            raise WrongUsage("--record writes a file and simulates nothing; leave FLEET out, or --record")
        _record(target, record)
    elif fleet is None:
        raise WrongUsage("which fleet? Give FLEET.yaml and WORKLOAD.yaml, or a file of decisions")
    elif workload is None:
        _replay(fleet, as_json=as_json)
    else:
        _simulate(fleet, workload, [policy, compare] if compare else [policy], seed, as_json=as_json)


# Recorded -------------------------------------------------------------------------------------------------


def _record(target: Target, path: Path) -> None:
    lines = target.ask(lambda client: _fetch(client, path))
    click.echo(f"{plural(lines, 'decision')} written to {clean(str(path))}")


async def _fetch(client: Client, path: Path) -> int:
    count = 0
    try:
        with path.open("wb") as file:
            async for piece in client.decisions():
                file.write(piece)
                count += piece.count(b"\n")
    except OSError as error:
        raise WrongUsage(f"{path}: {error.strerror}") from error
    return count


def _replay(path: Path, *, as_json: bool) -> None:
    total = 0
    others: list[tuple[int, Replayed]] = []
    for number, each in enumerate(_replayed(path), start=1):
        total = number
        if not each.same:
            others.append((number, each))
    if as_json:
        told = [{"line": number, **_difference(each)} for number, each in others]
        emit_json({"decisions": total, "same": total - len(others), "others": told})
    else:
        for number, each in others[:_MOST_TOLD]:
            click.echo(f"{clean(str(path))}:{number}: {clean(_told(each))}")
        click.echo(f"{plural(total, 'decision')}, {total - len(others)} as recorded, {len(others)} otherwise")
    if others:
        raise click.exceptions.Exit(1)


def _replayed(path: Path) -> Iterator[Replayed]:
    from gpustack.scheduling.records import BadRecord, Entry, replay

    lines = read_text(path).splitlines()
    at = 0

    def entries() -> Iterator[Entry]:
        nonlocal at
        for line in lines:
            at += 1
            yield Entry.read(line)

    try:
        yield from replay(entries())
    except BadRecord as error:
        raise WrongUsage(f"{path}:{at}: {error}") from error
    if not lines:
        raise WrongUsage(f"{path}: nothing is in it")


def _difference(each: Replayed) -> dict[str, Any]:
    from gpustack.scheduling.records import verdict

    return {"recorded": each.entry.verdict, "now": verdict(each.answer)}


def _told(each: Replayed) -> str:
    request = each.entry.request
    parts = _difference(each)
    return f"instance {request.instance_id} of {request.model_name}: {_short(parts['recorded'])}, now {_short(parts['now'])}"


def _short(verdict: Any) -> str:
    if preempted := verdict.get("preempted"):
        return f"in place of {', '.join(map(str, preempted['victims']))}"
    placed = verdict.get("placed")
    return "refused" if placed is None else f"placed on worker {placed['worker_id']}"


# Simulated ------------------------------------------------------------------------------------------------


def _simulate(
    fleet: Path, workload: Path, policies: Sequence[str], seed: int | None, *, as_json: bool
) -> None:
    from gpustack.scheduling.simulation import POLICIES, WrongValue, simulate
    from gpustack.scheduling.simulation import workload as workload_of

    workers, holdings = _fleet(fleet)
    read = located(read_text(workload), workload)
    try:
        wanted = workload_of(read.document)
    except WrongValue as error:
        raise WrongUsage(f"{workload}:{read.line(error.place)}: {error}") from error
    try:
        reports = [
            simulate(workers, wanted, POLICIES[each], seed=seed, holdings=holdings) for each in policies
        ]
    except InvalidInput as error:
        raise WrongUsage(f"{workload}: {error}") from error
    if as_json:
        documents = [_document(each) for each in reports]
        emit_json(documents if len(documents) > 1 else documents[0])
        return
    _print(reports)


def _fleet(path: Path) -> tuple[Sequence[Worker], Sequence[Holding]]:
    """Return the workers of a description, or the fleet at the end of a record."""
    from gpustack.scheduling.simulation import WrongValue
    from gpustack.scheduling.simulation import fleet as fleet_of

    text = read_text(path)
    if _is_record(text):
        rooms = _end_of(text, path).snapshot().rooms.values()
        return [each.worker for each in rooms], [held for each in rooms for held in each.holdings]
    read = located(text, path)
    try:
        return fleet_of(read.document), ()
    except WrongValue as error:
        raise WrongUsage(f"{path}:{read.line(error.place)}: {error}") from error


def _is_record(text: str) -> bool:
    first = text.lstrip()[:1_000_000].split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        return "verdict" in json.loads(first)
    except ValueError:
        return False


def _end_of(text: str, path: Path) -> Fleet:
    """Return the fleet as it was at the last decision of a record that has one."""
    from gpustack.scheduling.records import BadRecord, Entry, Replay

    state = Replay()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            state.step(Entry.read(line))
        except BadRecord as error:
            raise WrongUsage(f"{path}:{number}: {error}") from error
    return state.fleet


def _document(report: Report) -> dict[str, Any]:
    return {**dataclasses.asdict(report), "placement_rate": report.placement_rate}


def _print(reports: Sequence[Report]) -> None:
    first = reports[0]
    click.echo(
        f"{plural(first.workers, 'worker')} with {plural(first.gpus, 'GPU')}, {_time(first.duration)}, seed {first.seed}"
    )
    rows = [
        ("requests", [str(each.arrived) for each in reports]),
        ("placed", [f"{each.placed} ({each.placement_rate:.1%})" for each in reports]),
        ("placed at once", [str(each.at_once) for each in reports]),
        ("waiting at the end", [str(each.waiting) for each in reports]),
        ("of them placed before", [str(each.waiting_again) for each in reports]),
        ("lost to failures", [str(each.lost) for each in reports]),
        ("had to leave", [str(each.preempted) for each in reports]),
        ("wait, median", [_time(each.waits.median) for each in reports]),
        ("wait, 95 of 100", [_time(each.waits.p95) for each in reports]),
        ("wait, 99 of 100", [_time(each.waits.p99) for each in reports]),
        ("wait, longest", [_time(each.waits.longest) for each in reports]),
        ("GPU memory used", [f"{each.utilisation:.1%}" for each in reports]),
        ("fragmentation", [f"{each.fragmentation:.1%}" for each in reports]),
        ("decisions", [str(each.decisions) for each in reports]),
        ("fingerprint", [each.fingerprint for each in reports]),
    ]
    emit_table(
        ["", *(each.policy.upper() for each in reports)], [(name, *cells) for name, cells in rows], empty=""
    )
    click.echo("")
    emit_table(
        [
            "REQUESTS",
            *(f"{each.policy.upper()}: PLACED" for each in reports),
            *(f"{each.policy.upper()}: WAIT" for each in reports),
        ],
        [
            (
                name,
                *(f"{each.kinds[name].placed}/{each.kinds[name].arrived}" for each in reports),
                *(_time(each.kinds[name].waits.p95) for each in reports),
            )
            for name in first.kinds
        ],
        empty="",
    )
    click.echo("(WAIT: 95 of 100 of those that were placed waited no longer)")
    for name, kind in first.kinds.items():
        if kind.impossible:
            click.echo(f"{name} fits nowhere, whatever else runs: {kind.impossible}")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds == int(seconds) else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
