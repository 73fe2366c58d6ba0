"""A whole worker: joins, reads files, runs engines, serves their logs, and comes and goes without losing any."""

import asyncio
import threading
import time
from typing import Any

import httpx
import psutil
import pytest

from gpustack.extensions import Registered
from gpustack.kit.errors import GPUStackError
from gpustack.plugin import NoSettings, SystemDetector, SystemReading, Verdict
from gpustack.worker.runners.records import read_records
from support.running import alive

RUNNING = "running"


class HangingDetector(SystemDetector[NoSettings]):
    """Blocks its event loop for ever, once told so."""

    name = "hangs"
    settings_type = NoSettings
    hangs = False
    door = threading.Event()

    def present(self) -> Verdict:
        return Verdict.yes()

    async def measure(self, paths: Any) -> SystemReading:
        if self.hangs:
            self.door.wait()
        return SystemReading(cores=1, ram_total=7, ram_used=1)


class TestJoining:
    async def test_it_says_who_it_is_and_stays_the_same(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        await fleet.start()

        first, second = server.registrations
        assert first["worker_uuid"] == second["worker_uuid"]
        assert first["door_token"] == second["door_token"]
        assert (first["name"], first["ip"], first["port"]) == ("w1", "127.0.0.1", fleet.port)
        assert first["catalogue"]["backends"] == ["fake"]
        assert first["catalogue"]["abilities"] == ["members"], "an older one is given no members"
        assert first["installed_versions"] == {"fake": ["1"]}
        assert first["labels"]["worker-name"] == "w1"
        kept = {path.name: path.stat().st_mode & 0o777 for path in fleet.config.worker_dir.iterdir()}
        assert kept == dict.fromkeys(("credential", "door_token", "key", "worker_uuid"), 0o600)

    async def test_ready_means_that_the_server_heard_it(self, fleet: Any, server: Any) -> None:
        await fleet.start()

        assert fleet.ready.is_set()
        assert server.beats

    async def test_it_waits_for_a_server_that_is_not_there_yet(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        server.down = True
        starting = asyncio.create_task(fleet.start())
        await asyncio.sleep(0.5)
        assert not fleet.ready.is_set()

        server.down = False

        await starting
        assert fleet.ready.is_set()

    async def test_every_third_heartbeat_has_figures(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        await until(lambda: len(server.beats) >= 7)

        assert ["status" in beat for beat in server.beats[:7]] == [
            False,
            False,
            False,
            True,
            False,
            False,
            True,
        ]

    async def test_a_heartbeat_that_failed_is_sent_again_before_the_next_is_due(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(heartbeat=1.0)
        await until(lambda: server.beats)
        began, seen = time.monotonic(), len(server.beats)
        server.down = True
        await asyncio.sleep(1.1)
        server.down = False
        await until(lambda: len(server.beats) > seen)

        assert time.monotonic() - began < 1.7

    async def test_a_detector_that_hangs_stops_no_heartbeat(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        fleet.catalogue.system_detectors["hangs"] = Registered(
            cls=HangingDetector, plugin="hangs", distribution="hangs", version="1"
        )
        HangingDetector.door.clear()
        try:
            await fleet.start(heartbeat=0.1)
            await until(lambda: any("status" in beat for beat in server.beats))
            HangingDetector.hangs = True
            server.beats.clear()
            await asyncio.sleep(2)

            assert len(server.beats) >= 12
            assert any("status" in beat for beat in server.beats)
            assert server.beats[-1].get("status", {"memory": {"total": 7}})["memory"]["total"] == 7
            assert await fleet.stop() < 2
        finally:
            HangingDetector.hangs = False
            HangingDetector.door.set()

    async def test_forgotten_it_joins_again_and_keeps_its_engines(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start()
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]

        server.forget_workers()

        await until(lambda: len(server.registrations) == 2)
        await until(lambda: len(server.beats) > 5)
        assert alive(pid)
        assert len(read_records(fleet.config.run_dir)) == 1


class TestMemory:
    async def test_what_an_engine_took_is_told_once_it_serves(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(measuring=0.1)
        server.want(1, fleet.a_model())

        await until(lambda: "peak" in server.last(1))

        told = server.last(1)
        assert told["state"] == RUNNING
        # A Python process without a model.
        assert 2 << 20 < told["peak"]["ram"] < 200 << 20
        assert server.states(1).count(RUNNING) == 2


class TestModelFiles:
    def ask(self, server: Any, path: str, number: int = 1, request: int = 1) -> None:
        row = {
            "id": number,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
            "worker_id": 1,
            "source": "local_path",
            "local_path": path,
            "source_key": "k",
            "state": "analyzing",
            "request": request,
        }
        server.put("model-files", row)

    async def test_facts_are_reported(self, fleet: Any, server: Any, until: Any) -> None:
        self.ask(server, fleet.model)
        await fleet.start()
        await until(lambda: server.last(1, "model-files")["state"] == "ready")

        report = server.last(1, "model-files")
        assert report["request"] == 1
        assert report["resolved_paths"] == [fleet.model]
        assert report["facts"]["architecture"] == "llama"
        assert report["size"] == report["facts"]["weight_bytes"] > 0

    async def test_what_is_wrong_is_reported(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        self.ask(server, "/no/such.gguf", request=5)
        await until(lambda: server.last(1, "model-files")["state"] == "error")

        assert "does not exist on this worker" in server.last(1, "model-files")["state_message"]
        assert server.last(1, "model-files")["request"] == 5

    async def test_a_new_request_is_answered_anew(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        self.ask(server, fleet.model, request=1)
        await until(lambda: server.last(1, "model-files")["state"] == "ready")
        self.ask(server, fleet.model, request=2)

        await until(lambda: server.last(1, "model-files").get("request") == 2)


class TestEngines:
    async def test_from_placed_to_running_to_gone(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("slow"))
        await until(lambda: server.last(1)["state"] == RUNNING)

        assert [s for n, s in enumerate(server.states(1)) if n == 0 or server.states(1)[n - 1] != s] == [
            "initializing",
            "starting",
            "running",
        ]
        report = server.last(1)
        assert report["port"] in fleet.config.service_ports
        assert alive(report["pid"])

        server.drop("model-instances", 1)
        await until(lambda: not alive(report["pid"]))
        await until(lambda: not read_records(fleet.config.run_dir))
        await until(lambda: not (fleet.config.data_dir / "scratch" / "1").exists())

    async def test_a_crash_is_told_with_its_last_lines_and_tried_again(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("crashes at once"))
        await until(lambda: sum("restarted" in r for *_, r in server.reports) >= 2)

        assert [r["restart_count"] for *_, r in server.reports if r.get("restarted")][:2] == [1, 2]
        errors = [r["state_message"] for *_, r in server.reports if r["state"] == "error"]
        assert "exited with status 3" in errors[0]
        assert errors[0].endswith(
            "last lines of its log:\nengine crashes at once says hello\ncannot load the model"
        )
        assert "pid" not in next(r for *_, r in server.reports if r["state"] == "error")

    async def test_without_restarts_it_stays_down(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("crashes at once", restart_on_error=False))
        await until(lambda: server.last(1)["state"] == "error")
        await asyncio.sleep(0.8)

        assert server.states(1).count("starting") == 1

    async def test_a_crash_while_serving_is_mended(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("crashes later"))
        await until(lambda: server.states(1).count(RUNNING) >= 2)

        assert any("exited with status 7" in r["state_message"] for *_, r in server.reports)

    async def test_one_that_hangs_is_ended_and_started_again(
        self, fleet: Any, server: Any, until: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = fleet.catalogue.backends["fake"].cls
        monkeypatch.setattr(backend, "launch", _with_short_probe(backend.launch))
        await fleet.start()
        server.want(1, fleet.a_model("hangs later"))
        await until(lambda: server.states(1).count(RUNNING) >= 2)

        assert any("stopped answering (3 probes in a row)" in r["state_message"] for *_, r in server.reports)

    async def test_one_that_never_answers_is_given_up(self, fleet: Any, server: Any, until: Any) -> None:
        from gpustack.lifecycle.engine import EngineLimits

        await fleet.start(limits=EngineLimits(start=1.0))
        server.want(1, fleet.a_model("never ready", restart_on_error=False))
        await until(lambda: server.last(1)["state"] == "error")

        assert "did not answer within 1 s" in server.last(1)["state_message"]

    async def test_what_can_never_work_says_so(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model(), backend="other")
        await until(lambda: server.last(1)["state"] == "error")

        assert (
            server.last(1)["state_message"] == "backend 'other' is not installed on this worker; it has: fake"
        )

    async def test_no_free_port_names_the_option(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start(service_ports=fleet.config.service_ports[:1])
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        server.want(2, fleet.a_model())
        await until(lambda: server.last(2)["state"] == "error")

        assert "--service-port-range" in server.last(2)["state_message"]
        assert "m-1" in server.last(2)["state_message"]

        server.drop("model-instances", 1)
        await until(lambda: server.last(2)["state"] == RUNNING)

    async def test_moved_away_it_ends_here(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)

        server.want(1, fleet.a_model(), worker_id=2)

        await until(lambda: not alive(server.last(1)["pid"]))

    async def test_reports_reach_a_server_that_was_away(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("slow"))
        await until(lambda: server.states(1))
        server.down = True
        await asyncio.sleep(2)
        assert RUNNING not in server.states(1)

        server.down = False

        await until(lambda: server.last(1)["state"] == RUNNING)

    async def test_lost_from_sight_it_says_again_that_it_runs(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start()
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)

        server.put("model-instances", server.things["model-instances"][1] | {"state": "unreachable"})

        await until(lambda: server.states(1).count(RUNNING) == 2)

    async def test_a_refused_report_is_said_again(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("slow"))
        await until(lambda: server.last(1)["state"] == "starting")

        server.refuse = 1

        await until(lambda: server.last(1)["state"] == RUNNING)
        assert server.refuse == 0

    async def test_one_that_serves_does_not_stay_failed_in_the_server(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start()
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)

        server.put("model-instances", server.things["model-instances"][1] | {"state": "error"})

        await until(lambda: server.states(1).count(RUNNING) == 2)

    async def test_placed_here_once_more_a_failed_one_starts_afresh(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("crashes at once", restart_on_error=False))
        await until(lambda: server.last(1)["state"] == "error")

        server.want(1, fleet.a_model("fine"))

        await until(lambda: server.last(1)["state"] == RUNNING)


def _with_short_probe(launch: Any) -> Any:
    from dataclasses import replace

    from gpustack.plugin import Probe

    return lambda self, request: replace(launch(self, request), ready=Probe(timeout=0.1))


class TestComingAndGoing:
    async def test_ended_it_leaves_nothing(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        for number in (1, 2):
            server.want(number, fleet.a_model("ignores SIGTERM"))
        await until(lambda: all(server.last(n)["state"] == RUNNING for n in (1, 2)))
        pids = [server.last(number)["pid"] for number in (1, 2)]

        assert await fleet.stop() < 5

        assert not any(alive(pid) for pid in pids)
        assert not read_records(fleet.config.run_dir)

    async def test_engines_are_adopted_by_the_next_worker(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model("goes on talking"))
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid, port = server.last(1)["pid"], server.last(1)["port"]
        assert await fleet.stop() < 1
        assert alive(pid)
        log = next((fleet.config.log_dir / "instances").glob("*/engine.log"))
        before = log.stat().st_size
        await until(lambda: log.stat().st_size > before)
        server.reports.clear()

        await fleet.start()
        await until(lambda: server.last(1)["state"] == RUNNING)

        assert server.states(1) == [RUNNING]
        assert (server.last(1)["pid"], server.last(1)["port"]) == (pid, port)

        psutil.Process(pid).kill()
        await until(
            lambda: server.last(1).get("pid") not in (None, pid) and server.last(1)["state"] == RUNNING
        )

    async def test_followed_logs_do_not_hold_the_end_up(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        headers = {"Authorization": f"Bearer {server.registrations[0]['door_token']}"}
        url = f"http://127.0.0.1:{fleet.port}/serveLogs/1?follow=true"
        async with (
            httpx.AsyncClient(headers=headers, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            await anext(response.aiter_bytes())

            assert await fleet.stop() < 1

    @pytest.mark.parametrize("error", [ValueError("a defect"), GPUStackError("one line")])
    async def test_a_worker_that_fails_leaves_its_engines_to_the_next(
        self, fleet: Any, server: Any, until: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        broken = asyncio.Event()

        async def fail(*_: Any, **__: Any) -> None:
            await broken.wait()
            raise error

        monkeypatch.setattr("gpustack.worker.instances.Instances.tend_logs", fail)
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]

        broken.set()
        # People read the line of the one; a defect keeps its group, for the traceback.
        with pytest.raises(GPUStackError if isinstance(error, GPUStackError) else ExceptionGroup) as caught:
            await asyncio.wait_for(fleet.task, 5)
        assert caught.value is error or error in caught.value.exceptions
        fleet.task = None
        assert alive(pid)

        broken.clear()
        server.reports.clear()
        await fleet.start()
        await until(lambda: server.last(1)["state"] == RUNNING)
        assert server.last(1)["pid"] == pid

    async def test_an_engine_that_died_meanwhile_is_started_again(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]
        await fleet.stop()
        psutil.Process(pid).kill()

        await fleet.start()

        await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != pid)

    async def test_an_engine_that_is_not_wanted_any_more_is_ended(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(keep_engines=True)
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        pid = server.last(1)["pid"]
        await fleet.stop()
        server.things["model-instances"].clear()

        await fleet.start()

        assert not alive(pid)
        assert not read_records(fleet.config.run_dir)

    async def test_placed_again_right_after_it_was_removed(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start()
        server.want(1, fleet.a_model("ignores SIGTERM"))
        await until(lambda: server.last(1)["state"] == RUNNING)
        old = server.last(1)["pid"]
        server.reports.clear()

        server.drop("model-instances", 1)
        server.want(1, fleet.a_model())

        await until(lambda: server.last(1)["state"] == RUNNING)
        assert server.last(1)["pid"] != old
        assert not alive(old)

    async def test_idle_it_costs_next_to_nothing(self, fleet: Any, server: Any, until: Any) -> None:
        await fleet.start(heartbeat=10.0)
        await asyncio.sleep(0.5)

        before = time.process_time()
        await asyncio.sleep(3)

        # The whole test process, with the fake server in it.
        assert (time.process_time() - before) / 3 < 0.02


class TestOwnPort:
    @pytest.fixture
    async def http(self, fleet: Any, server: Any) -> Any:
        await fleet.start()
        token = server.registrations[0]["door_token"]
        base = f"http://127.0.0.1:{fleet.port}"
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=10) as client:
            yield client

    async def test_health_needs_no_credential_and_logs_do(self, http: Any) -> None:
        bare = {"Authorization": ""}

        assert (await http.get("/healthz", headers=bare)).text == "ok"
        assert (await http.get("/serveLogs/1", headers=bare)).status_code == 401
        assert (await http.get("/serveLogs/1", headers={"Authorization": "Bearer x"})).status_code == 401
        assert (await http.post("/healthz")).status_code == 405
        assert (await http.get("/etc/passwd")).status_code == 404

    async def test_only_instances_of_this_worker_have_logs(self, http: Any) -> None:
        for path in (
            "/serveLogs/9",
            "/serveLogs/..%2f..%2fetc",
            "/serveLogs/",
            "/serveLogs/9999999999999999999999",
        ):
            assert (await http.get(path)).status_code == 404

    async def test_a_log_is_read(self, http: Any, fleet: Any, server: Any, until: Any) -> None:
        server.want(1, fleet.a_model("shows its world"))
        await until(lambda: server.last(1)["state"] == RUNNING)

        whole = (await http.get("/serveLogs/1")).text
        assert whole.startswith("engine shows its world says hello\nENV ")
        lines = whole.splitlines(keepends=True)
        for tail in (0, 1, 2, len(lines), 1000):
            assert (await http.get(f"/serveLogs/1?tail={tail}")).text == "".join(
                lines[len(lines) - min(tail, len(lines)) :]
            )
        assert (await http.get("/serveLogs/1?tail=x")).status_code == 400

    async def test_the_log_of_the_start_before_is_kept(
        self, http: Any, fleet: Any, server: Any, until: Any
    ) -> None:
        server.want(1, fleet.a_model("shows its world"))
        await until(lambda: server.last(1)["state"] == RUNNING)
        missing = await http.get("/serveLogs/1?previous=true")
        assert missing.status_code == 404
        assert "was not started more than once" in missing.json()["message"]
        log = next((fleet.config.log_dir / "instances").glob("*/engine.log"))
        with log.open("a") as file:
            file.write("last words\n")
        pid = server.last(1)["pid"]

        psutil.Process(pid).kill()
        await until(lambda: server.last(1)["state"] == RUNNING and server.last(1)["pid"] != pid)

        previous = await http.get("/serveLogs/1?previous=true&tail=1&follow=true")
        assert (previous.status_code, previous.text) == (200, "last words\n")
        assert "last words" not in (await http.get("/serveLogs/1")).text

    async def test_a_followed_log_grows_and_ends_with_its_engine(
        self, http: Any, fleet: Any, server: Any, until: Any
    ) -> None:
        server.want(1, fleet.a_model("slow"))
        await until(lambda: server.states(1))

        async def follow() -> str:
            return (await http.get("/serveLogs/1?follow=true")).text

        following = asyncio.create_task(follow())
        await until(lambda: server.last(1)["state"] == RUNNING)
        log = next((fleet.config.log_dir / "instances").glob("*/engine.log"))
        with log.open("a") as file:
            file.write("one more line\n")
        await asyncio.sleep(0.5)
        assert not following.done()

        server.drop("model-instances", 1)

        assert await asyncio.wait_for(following, 10) == "engine slow says hello\none more line\n"

    async def test_a_client_that_leaves_is_let_go(
        self, http: Any, fleet: Any, server: Any, until: Any
    ) -> None:
        server.want(1, fleet.a_model())
        await until(lambda: server.last(1)["state"] == RUNNING)
        before = psutil.Process().num_fds()

        async with http.stream("GET", "/serveLogs/1?follow=true") as response:
            await anext(response.aiter_bytes())

        await until(lambda: psutil.Process().num_fds() <= before + 1)
