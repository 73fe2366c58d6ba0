"""Talking to the container engine with Docker's SDK, and whose a container is.

A container is known by labels: the path of its instance's record, the data directory that it lies in, and the instance.
Its name is for people. The SDK is imported by whoever has a container to do something with, and by nobody else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.kit.paths import place, write_atomic
from gpustack.worker.runners.daemon import NoContainerEngine, ask
from gpustack.worker.runners.daemon_words import short
from gpustack.worker.runners.records import CONTAINERS_USED, EngineRecord, record_path, records_dir

if TYPE_CHECKING:
    from docker import APIClient

INSTANCE = "gpustack.instance"
NAME = "gpustack.instance-name"
RECORD = "gpustack.record"
PLACE = "gpustack.place"

#: Seconds that the engine may take for an answer, unless it is asked for something that takes longer.
PATIENCE = 20.0


def labels(run_dir: Path, instance_id: int, name: str) -> dict[str, str]:
    """Return what a container of this instance is labelled with."""
    return {
        INSTANCE: str(instance_id),
        NAME: name,
        RECORD: str(record_path(run_dir, instance_id)),
        PLACE: place(run_dir.parent),
    }


def is_ours(found: dict[str, str] | None, run_dir: Path, instance_id: int) -> bool:
    """Tell whether a container with these labels belongs to this instance of this data directory."""
    wanted = labels(run_dir, instance_id, "")
    return all((found or {}).get(key) == wanted[key] for key in (INSTANCE, RECORD, PLACE))


@contextlib.contextmanager
def connected(url: str, *, timeout: float = PATIENCE) -> Iterator[APIClient]:
    """Speak to the engine at ``url`` while the block runs; ``timeout`` is for each answer, in seconds.

    Raises NoContainerEngine when it does not answer, inside the block too.
    """
    import docker
    import requests
    import urllib3

    # Asked first: what the SDK says of an engine that is away is no line for people.
    daemon = ask(url)
    client = docker.APIClient(base_url=url, version=daemon.api, timeout=math.ceil(timeout))
    try:
        yield client
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise NoContainerEngine(away(url, error)) from error
    finally:
        client.close()


def away(url: str, error: BaseException) -> str:
    """Return what is said of a container engine that went away while it was spoken to."""
    where = url.removeprefix("unix://")
    return f"the container engine at {where} does not answer ({short(str(error))}): is its service running?"


def said(error: Any) -> str:
    """Return the words of the container engine in an error of the SDK."""
    return str(getattr(error, "explanation", "") or error)


def of_instance(client: APIClient, run_dir: Path, instance_id: int) -> list[dict[str, Any]]:
    """Return the containers of an instance in any state, as the engine lists them, the newest first."""
    wanted = f"{RECORD}={record_path(run_dir, instance_id)}"
    found = client.containers(all=True, filters={"label": [wanted]})
    return [each for each in found if is_ours(each.get("Labels"), run_dir, instance_id)]


def of_data_directory(client: APIClient, run_dir: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield all containers of a data directory in any state, each with the number of its instance."""
    for each in client.containers(all=True, filters={"label": [f"{PLACE}={place(run_dir.parent)}"]}):
        found = each.get("Labels") or {}
        number = found.get(INSTANCE, "")
        if number.isdecimal() and found.get(RECORD) == str(record_path(run_dir, int(number))):
            yield int(number), each


def remove(client: APIClient, container: str) -> None:
    """Remove a container whatever it does, with its own volumes; there need not be one."""
    import docker

    try:
        client.remove_container(container, force=True, v=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        # Somebody else is at it: the engine itself, or a worker that was killed meanwhile.
        if "already in progress" not in said(error):
            raise


# Which engines were ever used ---------------------------------------------------------------------------


def note_used(run_dir: Path, url: str) -> None:
    """Write down that the engine at ``url`` has containers of this data directory. Raises OSError."""
    known = used(run_dir)
    if url not in known:
        records_dir(run_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(run_dir / CONTAINERS_USED, "\n".join([*known, url]) + "\n", mode=0o600)


def used(run_dir: Path) -> list[str]:
    """Return the engines that were ever used here: where there is none, nobody is asked for leftovers."""
    try:
        return [line for line in (run_dir / CONTAINERS_USED).read_text(encoding="utf-8").splitlines() if line]
    except OSError:
        return []


def engine_of(record: EngineRecord, run_dir: Path) -> str:
    """Return the address of the engine that has the container of ``record``; "" when nobody knows."""
    return record.daemon or next(iter(used(run_dir)), "")
