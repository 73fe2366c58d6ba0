"""Ending engines in containers, and removing what is left of them. Imported only where there ever was a container."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.kit.threads import in_daemon
from gpustack.worker.runners.container_api import (
    connected,
    engine_of,
    is_ours,
    of_data_directory,
    of_instance,
    remove,
    said,
    used,
)
from gpustack.worker.runners.container_log import ContainerLog, catch_up, position_path
from gpustack.worker.runners.daemon import NoContainerEngine
from gpustack.worker.runners.daemon_words import short
from gpustack.worker.runners.records import CONTAINER, EngineRecord

if TYPE_CHECKING:
    from concurrent.futures import Future

    from docker import APIClient

log = logging.getLogger(__name__)

#: Seconds that the container engine may take beyond the grace to end a container, and to remove it.
_BEYOND = 5.0


def end_containers(run_dir: Path, records: Sequence[EngineRecord], *, grace: float) -> dict[int, str]:
    """End the containers of these instances, all at once: politely first, after ``grace`` seconds for good; blocks.

    Returns a line by instance for each that may be there still.
    """
    ending: dict[int, Future[str]] = {
        record.instance_id: in_daemon(_task(run_dir, record, grace), name=f"ends {record.instance_name}")
        for record in records
    }
    return {number: line for number, task in ending.items() if (line := task.result())}


def _task(run_dir: Path, record: EngineRecord, grace: float) -> Any:
    return lambda: _end(run_dir, record, grace)


def _end(run_dir: Path, record: EngineRecord, grace: float) -> str:
    import docker

    if not (url := engine_of(record, run_dir)):
        return ""
    try:
        with connected(url, timeout=grace + _BEYOND) as client:
            for each in _containers(client, run_dir, record):
                _stop(client, each, grace)
                _last_words(client, run_dir, record, each)
                remove(client, each)
    except NoContainerEngine as error:
        return f"its container cannot be ended: {error}"
    except docker.errors.APIError as error:
        return f"its container cannot be ended: {short(said(error))}"
    position_path(run_dir, record.instance_id).unlink(missing_ok=True)
    return ""


def _containers(client: APIClient, run_dir: Path, record: EngineRecord) -> list[str]:
    """Return the containers of an instance: the one that is written down, and what failed starts left."""
    import docker

    found = [each["Id"] for each in of_instance(client, run_dir, record.instance_id)]
    if record.container and record.container not in found:
        # It is listed under no label when the engine has lost sight of it half way.
        with contextlib.suppress(docker.errors.NotFound):
            labels = client.inspect_container(record.container)["Config"].get("Labels")
            if is_ours(labels, run_dir, record.instance_id):
                found.append(record.container)
    return found


def _stop(client: APIClient, container: str, grace: float) -> None:
    """Have the container's first process end, and with it all others."""
    import docker

    with contextlib.suppress(docker.errors.NotFound):
        # In whole seconds, and none at all for one that never ran.
        client.stop(container, timeout=math.ceil(grace))


def _last_words(client: APIClient, run_dir: Path, record: EngineRecord, container: str) -> None:
    """Write what it said since anybody listened last: with the container it would be gone."""
    import docker

    if record.runner != CONTAINER or not record.log_path or container != record.container:
        return
    try:
        with ContainerLog(Path(record.log_path), position_path(run_dir, record.instance_id)) as file:
            catch_up(client, container, file)
    except (docker.errors.DockerException, OSError) as error:
        log.warning("instance %s: the end of its log is lost: %s", record.instance_name, short(str(error)))


def sweep(run_dir: Path, *, keep: Collection[int]) -> list[int]:
    """Remove the containers of instances other than ``keep``, however they came to be left; blocks.

    Returns the instances that had some. Engines that do not answer are left out, and named in the log.
    """
    import docker

    found = set[int]()
    for url in used(run_dir):
        try:
            with connected(url) as client:
                for number, each in list(of_data_directory(client, run_dir)):
                    if number not in keep:
                        log.info(
                            "container %s of instance %d is left over: removing it", each["Id"][:12], number
                        )
                        remove(client, each["Id"])
                        found.add(number)
        except NoContainerEngine as error:
            log.warning("leftover containers are not looked for: %s", error)
        except docker.errors.APIError as error:
            log.warning("a leftover container cannot be removed: %s", short(said(error)))
    return sorted(found)
