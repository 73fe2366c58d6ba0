"""Which gateway ``--gateway-mode`` means, and what is to be run for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpustack.app import chosen_gateway
from gpustack.app.chosen_gateway import choose
from gpustack.extensions import Catalogue, Registered, load_catalogue
from gpustack.extensions.catalogue import Failure
from gpustack.kit import local_sockets
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.plugin import DataPathProcess, LaunchPlan, NoSettings
from gpustack.settings.gateway import NO_GATEWAY, GatewayProcess
from gpustack.settings.model import Settings
from gpustack.testing.fakes.gateway import FakeGateway


class Acme(FakeGateway):
    name = "acme"
    plans: Any = (LaunchPlan(argv=("acme-proxy", "--fast"), env={"ACME": "1"}, cwd="/srv"), DataPathProcess())

    def processes(self) -> Sequence[LaunchPlan | DataPathProcess]:
        found: Sequence[LaunchPlan | DataPathProcess] = self.plans
        return found


def catalogue(gateway: type[FakeGateway] = Acme) -> Catalogue:
    found = load_catalogue()
    found.gateways["acme"] = Registered(cls=gateway, plugin="acme", distribution="acme", version="1.0")
    return found


def settings(tmp_path: Path, mode: str = "", **more: Any) -> Settings:
    plugins = {"gateway_mode": mode} if mode else {}
    return Settings.model_validate(
        {"data_dir": tmp_path, "plugins": {**plugins, **more.pop("plugins", {})}, **more}
    )


@pytest.mark.parametrize("mode", ["", "auto", "embedded"])
def test_the_embedded_gateway_is_the_usual_one(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)))
    for most, wanted in ((1, 1), (2, 2), (16, 3)):
        found = choose(settings(tmp_path, mode, plugins={"gateway_concurrency": most}), load_catalogue())
        assert (found.name, found.processes) == ("embedded", (GatewayProcess(),) * wanted)


@pytest.mark.parametrize("without", ["sockets", "plugin"])
def test_where_it_cannot_be_the_server_carries_the_requests(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_catalogue(blocked={"gateway"} if without == "plugin" else ())
    monkeypatch.setattr(local_sockets, "AVAILABLE", without == "plugin")
    assert choose(settings(tmp_path), found) == NO_GATEWAY
    with pytest.raises(SettingsError) as caught:
        choose(settings(tmp_path, "embedded"), found)
    wanted = "there is no gateway 'embedded'" if without == "plugin" else "needs local sockets"
    assert wanted in caught.value.message


def test_disabled_is_none_and_so_is_a_worker_elsewhere(tmp_path: Path) -> None:
    assert choose(settings(tmp_path, "disabled"), load_catalogue()) == NO_GATEWAY
    assert choose(settings(tmp_path, "acme", server_url="http://elsewhere"), load_catalogue()) == NO_GATEWAY


def test_another_gateway_is_chosen_by_its_name(tmp_path: Path) -> None:
    found = choose(settings(tmp_path, "acme"), catalogue())
    assert found.name == "acme"
    assert found.data_path == 1
    (program,) = found.programs
    assert (program.argv, program.env, program.cwd) == (("acme-proxy", "--fast"), {"ACME": "1"}, "/srv")


def test_one_that_is_not_there_is_one_line_with_what_there_is(tmp_path: Path) -> None:
    found = catalogue()
    found.failures.append(
        Failure(plugin="gone", distribution="gone-gateway", version="2", stage="import", error="no module x")
    )
    with pytest.raises(SettingsError) as caught:
        choose(settings(tmp_path, "gone"), found)
    assert caught.value.message == (
        "--gateway-mode: there is no gateway 'gone'; give one of auto, disabled, acme, embedded; plugin gone "
        "(gone-gateway 2) failed at import: no module x"
    )


@pytest.mark.parametrize(
    ("plans", "wrong"),
    [
        ("nginx", "return a sequence"),
        (("nginx",), "holds 'nginx'; give a LaunchPlan or a DataPathProcess"),
        ((LaunchPlan(argv=()),), "without a command line"),
        ((LaunchPlan(argv=("nginx", 80)),), "that is no text"),  # type: ignore[arg-type]
        ((LaunchPlan(argv=("nginx", "a\0b")),), "no system can run"),
        ((LaunchPlan(argv=("nginx",), env={"A=B": "1"}),), "no system can run"),
    ],
)
def test_what_is_no_process_is_one_line(plans: Any, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(GPUStackError) as caught:
        choose(settings(tmp_path, "acme"), catalogue(type("Wrong", (Acme,), {"plans": plans})))
    assert "plugin acme: acme: processes" in caught.value.message
    assert wrong in caught.value.message


def test_one_that_fails_is_one_line(tmp_path: Path) -> None:
    class Fails(Acme):
        settings_type = NoSettings

        def processes(self) -> Sequence[LaunchPlan | DataPathProcess]:
            raise ValueError("no port")

    with pytest.raises(GPUStackError, match="plugin acme: processes failed: ValueError: no port"):
        choose(settings(tmp_path, "acme"), catalogue(Fails))


def test_a_name_is_looked_for_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpustack.app.checks import examine, gateways

    monkeypatch.setattr(gateways, "load_catalogue", catalogue)
    flags = {"data_dir": str(tmp_path), "port": "0", "api_port": "0", "worker_port": "0"}
    options = load_catalogue().options

    def problems(mode: str) -> tuple[str, ...]:
        return examine({**flags, "gateway_mode": mode}, options).problems

    assert problems("acme") == problems(chosen_gateway.EMBEDDED) == ()
    assert problems("acmee") == (
        "--gateway-mode: there is no gateway 'acmee'; give one of auto, disabled, acme, embedded",
    )
