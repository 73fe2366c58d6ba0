"""What a backend's row says reaches the engine: its command, environment and health path."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from gpustack.lifecycle.engine import EngineLimits
from gpustack.plugin import Refused
from gpustack.worker import agent
from gpustack_backends import Custom

ENGINE = str(Path(__file__).parents[1] / "engine_process" / "fake_engine.py")
COMMAND = f"{shlex.quote(sys.executable)} {shlex.quote(ENGINE)} {{{{port}}}}"


@pytest.fixture(autouse=True)
def _custom(fleet: Any) -> None:
    registered = fleet.catalogue.backends["fake"]
    fleet.catalogue.backends["custom"] = type(registered)(
        cls=Custom, plugin="backends", distribution="gpustack-backends", version="1"
    )


def described(fleet: Any, command: str = COMMAND, behaviour: str = "fine", **fields: Any) -> dict[str, Any]:
    config = {"run_command": command, **fields.pop("config", {})}
    return dict(fleet.a_model(behaviour, served_by="custom", config=config, **fields))


async def test_a_command_runs_with_its_environment(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start()
    env = {"MODEL_VAR": "of {{model_name}}", "OTHER": "x"}
    server.want(1, described(fleet, behaviour="shows its world", config={"env": env}), backend="mine")
    await until(lambda: server.last(1)["state"] == "running")

    said = next((fleet.config.log_dir / "instances").glob("*/engine.log")).read_text()
    assert "VALUE of m" in said
    assert " OTHER " in said.splitlines()[1] + " "


async def test_a_plugins_engine_runs_by_another_command(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start()
    config = {"run_command": f"{{{{command}}}} {shlex.quote(ENGINE)} {{{{port}}}}", "packages": ["more==1"]}
    model = fleet.a_model(
        "fine",
        served_by="fake",
        config=config,
        backend_packages=["B_c >=2"],
        env={"GPUSTACK_BACKEND_DEPS": "a"},
    )
    server.want(1, model)
    await until(lambda: server.last(1)["state"] == "running")
    assert agent.ArtifactInstaller.extras == ("a", "b-c>=2", "more==1")  # type: ignore[attr-defined]  # the fake


async def test_a_version_that_the_plugin_does_not_know_is_run_by_its_command(
    fleet: Any, server: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: object, version: str, platform: object) -> None:
        raise Refused(f"there is no version {version}")

    monkeypatch.setattr(fleet.catalogue.backends["fake"].cls, "artifact", refuses)
    await fleet.start()
    model = fleet.a_model("fine", served_by="fake", config={"run_command": COMMAND})
    server.want(1, model, backend_version="own-build")
    await until(lambda: server.last(1)["state"] == "running")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"command": "no-such-thing {{port}}"}, "run_command: there is no program 'no-such-thing' on this worker, in its"),
        ({"command": "/no/such {{port}}"}, "run_command: the program /no/such does not exist on this worker; put it there"),
        ({"command": "{{model_path}}"}, "m.gguf may not be run on this worker; `chmod +x` allows it, if it is a program"),
        ({"command": "bin/x"}, "run_command: the program 'bin/x' is neither a name nor an absolute path"),
        ({"trouble": "backend mine has no version '1'; it has 2"}, "backend mine has no version '1'; it has 2"),
        ({"backend_packages": ["more==1"]}, "m runs by a command of its own, which has no environment that more==1 could"),
    ],
)  # fmt: skip
async def test_what_cannot_be_started_is_one_line(
    fleet: Any, server: Any, until: Any, model: dict[str, Any], says: str
) -> None:
    await fleet.start()
    server.want(1, described(fleet, **model), backend="mine")
    await until(lambda: server.last(1)["state"] == "error")

    message = server.last(1)["state_message"]
    assert says in message
    assert "\n" not in message
    assert server.states(1).count("starting") == 0


async def test_a_health_path_that_never_answers_is_named(fleet: Any, server: Any, until: Any) -> None:
    await fleet.start(limits=EngineLimits(start=0.7))
    model = described(fleet, behaviour="never ready", health_check_path="/never", restart_on_error=False)
    server.want(1, model, backend="mine")
    await until(lambda: server.last(1)["state"] == "error")

    said = server.last(1)["state_message"].splitlines()[0]
    assert said == "the engine did not answer at /never within 1 s and was ended"


async def test_a_health_path_that_the_engine_does_not_have_is_named_while_it_starts(
    fleet: Any, server: Any, until: Any
) -> None:
    await fleet.start()
    server.want(1, described(fleet, behaviour="has no such path", health_check_path="/up"), backend="mine")
    said = "the engine answers 404 at /up, by which it is to tell that it is ready"

    await until(lambda: server.last(1).get("state_message") == said)
    assert server.last(1)["state"] == "starting"


async def test_files_that_are_no_model_to_us_are_served(
    fleet: Any, server: Any, until: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "some weights"
    folder.mkdir()
    (folder / "part").write_bytes(b"x" * 1000)
    await fleet.start()
    server.want(1, described(fleet, local_path=str(folder)), backend="mine")
    await until(lambda: server.last(1)["state"] == "running")

    assert server.last(1)["resolved_path"] == str(folder)
