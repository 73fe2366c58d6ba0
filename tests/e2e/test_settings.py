"""What options do to a running GPUStack, and what is changed without a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.certificates import a_pair
from support.fake_api import Reply, fake_api
from support.running import Running, eventually, free_ports, gpustack, processes_of, spawn

pytestmark = pytest.mark.xdist_group("e2e-settings")

PAGE = "https://page.example"


class Configured:
    """A GPUStack with a config file, TLS and CORS."""

    def __init__(self, place: Path) -> None:
        self.file = place / "config.yaml"
        self.api_port, self.tls_port = free_ports(2)
        self.certfile, self.keyfile = place / "tls.crt", place / "tls.key"
        self.running: Running
        self.new_certificate()

    def new_certificate(self) -> bytes:
        """Replace the files, and return the certificate as a client sees it."""
        pair = a_pair()
        self.keyfile.write_bytes(pair.key_pem())
        self.certfile.write_bytes(pair.pem)
        return pair.der

    def write(self, **more: object) -> None:
        values = {
            "tls_port": self.tls_port,
            "ssl_certfile": str(self.certfile),
            "ssl_keyfile": str(self.keyfile),
            "enable_cors": True,
            "allow_origins": [PAGE],
            "disable_worker": True,
            **more,
        }
        self.file.write_text(json.dumps(values))

    def served(self) -> bytes | None:
        """Return the certificate that a new connection sees."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.tls_port), timeout=10) as sock:
            with context.wrap_socket(sock) as secure:
                return secure.getpeercert(binary_form=True)

    def reload(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads(self.running.cli("config", "reload", "--json").stdout)
        return found


@pytest.fixture(scope="module")
def configured(place: Path) -> Iterator[Configured]:
    one = Configured(place)
    one.write()
    flags = ["--config-file", str(one.file), "--api-port", str(one.api_port)]
    with gpustack(place / "data", place / "home", flags) as running:
        one.running = running
        yield one


def test_one_server_answers_on_its_port_on_that_of_the_api_and_by_tls(configured: Configured) -> None:
    context = ssl.create_default_context(cafile=str(configured.certfile))
    for url in (configured.running.url, f"http://127.0.0.1:{configured.api_port}"):
        assert httpx.get(url + "/readyz").text == "ok"
    assert httpx.get(f"https://localhost:{configured.tls_port}/readyz", verify=context).text == "ok"


def test_the_port_of_the_api_is_open_to_this_machine_alone(configured: Configured) -> None:
    listening = {
        each.laddr.port: each.laddr.ip
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr
    }
    assert listening[configured.api_port] == "127.0.0.1"
    assert listening[configured.tls_port] == "0.0.0.0"


def test_a_renewed_certificate_is_served_without_a_word_of_ours(configured: Configured) -> None:
    before = configured.served()
    renewed = configured.new_certificate()
    assert before != renewed
    eventually(lambda: configured.served() == renewed, "the new certificate is served")


def test_pages_of_other_origins_are_answered_as_the_settings_say(configured: Configured) -> None:
    configured.write()
    configured.reload()
    for path in ("/v2/models", "/v1/chat/completions"):
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answer = httpx.options(configured.running.url + path, headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    other = httpx.get(configured.running.url + "/readyz", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_what_needs_no_restart_is_applied_and_the_rest_is_named(configured: Configured) -> None:
    other = "https://other.example"
    configured.write(allow_origins=[other], debug=True, disable_openapi_docs=True)
    pid = configured.running.state()["children"]["server"]["pid"]
    done = configured.reload()
    assert sorted(done["applied"]) == ["allow_origins", "debug"]
    assert done["needs_restart"] == ["disable_openapi_docs"]
    assert configured.running.state()["children"]["server"]["pid"] == pid
    answer = httpx.get(configured.running.url + "/readyz", headers={"Origin": other})
    assert answer.headers["access-control-allow-origin"] == other
    with configured.running.admin() as admin:
        rows = {row["name"]: row for row in admin.get("/v2/config").json()["items"]}
    assert rows["allow_origins"]["value"] == [other]
    assert rows["debug"]["origin"] == f"debug in {configured.file}, line 1"
    assert rows["disable_openapi_docs"]["value"] is False
    log = configured.running.data_dir / "log" / "server.log"
    httpx.get(configured.running.url + "/readyz")
    eventually(lambda: "GET /readyz" in log.read_text(), "each request is logged")
    configured.write()
    assert sorted(configured.reload()["applied"]) == ["allow_origins", "debug"]


def test_a_reload_reaches_a_server_that_is_just_starting(configured: Configured) -> None:
    def shared() -> bool:
        answer = httpx.get(configured.running.url + "/readyz", headers={"Origin": PAGE}, timeout=30)
        return "access-control-allow-origin" in answer.headers

    for wanted in (False, True):
        configured.write(enable_cors=wanted)
        psutil.Process(configured.running.state()["children"]["server"]["pid"]).kill()
        eventually(
            lambda: configured.running.state()["children"]["server"]["state"] == "starting", "it starts again"
        )
        assert "enable_cors" in configured.reload()["applied"]
        eventually(lambda now=wanted: shared() is now, "the new server has the new settings")


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_and_catches_up(configured: Configured) -> None:
    server = psutil.Process(configured.running.state()["children"]["server"]["pid"])
    other = "https://late.example"
    configured.write(allow_origins=[other])
    server.suspend()
    try:
        done = configured.running.cli("config", "reload", check=False)
    finally:
        server.resume()
    assert done.returncode == 1
    assert "Applied: allow_origins" in done.stdout
    assert "server does not answer" in done.stderr

    def caught_up() -> bool:
        asked = httpx.get(configured.running.url + "/readyz", headers={"Origin": other})
        return "access-control-allow-origin" in asked.headers

    eventually(caught_up, "it has applied them")
    configured.write()
    assert configured.reload()["applied"] == ["allow_origins"]


@pytest.mark.slow
def test_settings_may_be_longer_than_a_pipe_holds(configured: Configured) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\n" + "A" * 300_000
    configured.write(saml_idp_x509_cert=certificate)
    assert configured.reload()["needs_restart"] == ["saml_idp_x509_cert"]
    configured.running.cli("restart")
    configured.write(saml_idp_x509_cert=certificate, allow_origins=["https://long.example"])
    assert configured.reload()["applied"] == ["allow_origins"]
    configured.write()
    configured.reload()


def test_wrong_settings_change_nothing_and_are_all_named(configured: Configured) -> None:
    configured.write(allow_origins=["nonsense"], debug="perhaps", no_such_option=1)
    refused = configured.running.cli("config", "reload", check=False)
    assert refused.returncode == 2
    for name in ("allow_origins", "debug", "no_such_option"):
        assert name in refused.stderr
    asked = httpx.get(configured.running.url + "/readyz", headers={"Origin": PAGE})
    assert asked.headers["access-control-allow-origin"] == PAGE
    configured.write()


def test_without_a_terminal_a_hang_up_reads_the_settings_again(configured: Configured) -> None:
    configured.write(allow_origins=["https://hung-up.example"])
    configured.running.process.send_signal(signal.SIGHUP)

    def applied() -> bool:
        asked = httpx.get(configured.running.url + "/readyz", headers={"Origin": "https://hung-up.example"})
        return "access-control-allow-origin" in asked.headers

    eventually(applied, "the settings are read again", seconds=30)
    assert configured.running.process.poll() is None
    configured.write()
    configured.reload()


def test_secrets_are_in_no_answer_and_only_administrators_read_the_settings(configured: Configured) -> None:
    token = (configured.running.data_dir / "token").read_text()
    with configured.running.admin() as admin:
        answer = admin.get("/v2/config")
        key = admin.post("/v2/api-keys", json={"name": "settings"}).json()["value"]
    assert token not in answer.text
    assert httpx.get(configured.running.url + "/v2/config").status_code == 401
    named = {"Authorization": f"Bearer {key}"}
    assert httpx.get(configured.running.url + "/v2/config", headers=named).status_code in (200, 403)


def test_a_terminal_that_is_closed_ends_it(place: Path) -> None:
    """A session of its own with a terminal of its own, as an SSH login has it."""
    import pty

    leader, follower = pty.openpty()
    code = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    os.set_inheritable(follower, True)
    running = spawn(
        place / "terminal data",
        place / "home",
        ["--disable-worker"],
        prefix=["python3", "-c", code, str(follower)],
        pass_fds=[follower],
    )
    os.close(follower)
    try:
        eventually((place / "terminal data/run/supervisor.json").exists, "it runs", seconds=30)
        eventually(lambda: running.state()["ready"], "it is ready", seconds=30)
        os.close(leader)
        running.process.wait(20)
        assert running.end() == 0
    finally:
        for left in processes_of(place / "terminal data"):
            left.kill()


def test_others_are_told_the_name_that_they_know_the_server_by(place: Path) -> None:
    flags = ["--disable-worker", "--server-external-url", "https://models.example/", "--worker-ifname", "lo"]
    flags += ["--image-repo", "acme/gpustack", "--system-default-container-registry", "registry.example:5000"]
    with gpustack(place / "named data", place / "named home", flags) as running:
        assert "gpustack start --server-url https://models.example --token-file" in running.output
        joining = json.loads(running.cli("workers", "join-command", "--json").stdout)
        assert joining["server_url"] == "https://models.example"
        contained = running.cli("workers", "join-command", "--container").stdout
        assert " registry.example:5000/acme/gpustack:" in contained
        assert contained.startswith(f"GPUSTACK_TOKEN={joining['token']} docker run ")
        assert running.cli("ls").returncode == 0  # this machine's own commands need no name


def test_a_worker_tells_the_address_of_the_interface_that_is_named(place: Path) -> None:
    with gpustack(place / "lo data", place / "lo home", ["--worker-ifname", "lo"]) as running:
        with running.admin() as admin:
            (worker,) = admin.get("/v2/workers").json()["items"]
        assert worker["ip"] == "127.0.0.1"
        assert "http://127.0.0.1:" in running.output


@pytest.mark.slow
def test_the_update_check_is_heard_of_in_the_api_and_on_the_command_line(place: Path) -> None:
    with fake_api() as site:
        site.on("GET", "/latest", Reply(body={"latest_version": "99.0", "url": "https://example.org/99"}))
        env = {"GPUSTACK_DISABLE_UPDATE_CHECK": "false", "GPUSTACK_UPDATE_CHECK_URL": site.url + "/latest"}
        with gpustack(place / "update data", place / "home", ["--disable-worker"], env=env) as running:
            eventually(lambda: "99.0" in running.cli("status").stdout, "the command line says so", seconds=20)
            with running.admin() as admin:
                assert admin.get("/v2/update").json()["update_available"] is True


def test_every_wrong_thing_is_said_at_once_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text("prot: 80\nhuggingface_token: hf_very_secret\ntls_port: x\n")
    file.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        running = spawn(
            tmp_path / "data",
            tmp_path / "home",
            ["--config-file", str(file), "--ssl-keyfile", "/nowhere/key", "--worker-port", port],
            env={"GPUSTACK_DEBUG": "maybe"},
        )
        output, _ = running.process.communicate(timeout=30)
    said = output.decode()
    assert running.process.returncode == 2
    for part in (
        "'prot'",
        "'port'",
        "tls_port in",
        "line 3",
        "--ssl-certfile",
        "GPUSTACK_DEBUG",
        port,
        "chmod 600",
    ):
        assert part in said, said
    assert "hf_very_secret" not in said
    assert "Traceback" not in said
    assert not (tmp_path / "data").exists()
