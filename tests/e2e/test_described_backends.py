"""A backend that somebody described in a YAML file: deployed, served and counted, two versions of it at once."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from support.engine import InstalledEngine
from support.running import Running, eventually

pytestmark = [pytest.mark.xdist_group("e2e-described-backends"), pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "backends" / "second-llama.yaml"
SERVER = """\
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == sys.argv[2] else 404); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        choice = {"index": 0, "message": {"role": "assistant", "content": "I am " + sys.argv[3]}, "finish_reason": "stop"}
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                           "usage": usage}).encode()
        self.send_response(200); self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def described(stack: Running, engine: InstalledEngine, tiny_gguf: Path) -> Running:
    """The example's backend, applied to a GPUStack that runs."""
    (stack.home / "tiny.gguf").symlink_to(tiny_gguf)
    pinned = EXAMPLE.read_text(encoding="utf-8")
    assert engine.command.name in pinned, "the example names the engine's version"
    (stack.home / "second-llama.yaml").write_text(pinned)
    assert "Added second-llama: short, long." in stack.cli("backends", "apply", "second-llama.yaml").stdout
    return stack


def ask(running: Running, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with running.admin() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def instance_of(running: Running, model: str) -> dict[str, Any]:
    with running.admin() as client:
        items = client.get("/v2/model-instances").json()["items"]
    [found] = [each for each in items if each["model_name"] == model]
    return dict(found)


def failed(running: Running, model: str) -> str:
    """Return why an instance of the model failed, once it did: the one line that a table has room for."""
    eventually(lambda: instance_of(running, model)["state"] == "error", f"{model} fails", seconds=60)
    return str(instance_of(running, model)["state_message"]).splitlines()[0]


def test_two_versions_serve_at_the_same_time_and_are_counted(described: Running) -> None:
    described.cli(
        "deploy", "./tiny.gguf", "--name", "one", "--backend", "second-llama", "-p", "--ctx-size=512"
    )
    described.cli(
        "deploy", "./tiny.gguf", "--name", "two", "--backend", "Second-Llama", "--backend-version", "long"
    )

    usage = {name: ask(described, name)["usage"] for name in ("one", "two")}

    one, two = (instance_of(described, name) for name in ("one", "two"))
    assert [(each["backend"], each["backend_version"], each["state"]) for each in (one, two)] == [
        *(("second-llama", "short", "running"), ("second-llama", "long", "running"))
    ]
    assert one["worker_id"] == two["worker_id"]
    commands = [psutil.Process(each["pid"]).cmdline() for each in (one, two)]
    assert commands[0][-2:] == ["--ctx-size", "512"]
    assert "2048" in commands[1]
    assert psutil.Process(one["pid"]).environ()["GGML_NO_BACKTRACE"] == "1"
    assert one["computed_resource_claim"]["ram"] > (1 << 29)
    assert "second-llama" in described.cli("backends").stdout
    counted(described, usage)
    done = described.cli("backends", "delete", "second-llama", check=False)
    assert (done.returncode, "is in use by models one, two; remove them" in done.stderr) == (1, True)


def counted(running: Running, usage: dict[str, dict[str, int]]) -> None:
    """Check that each request became a record of usage, as a backup has them."""

    def all_are_there() -> bool:
        file = running.home / f"backup-{uuid4().hex}.tar.gz"
        running.cli("backup", str(file))
        rows = []
        with tarfile.open(file) as archive:
            for name in archive.getnames():
                if name.startswith("tables/usage_records/"):
                    rows += [json.loads(line) for line in archive.extractfile(name) or ()]
                if name.startswith("tables/inference_backends/"):
                    assert b"second-llama" in (archive.extractfile(name) or file.open("rb")).read()
        found = {row["model"]: (row["prompt_tokens"], row["completion_tokens"]) for row in rows}
        return all(found.get(m) == (u["prompt_tokens"], u["completion_tokens"]) for m, u in usage.items())

    eventually(all_are_there, "usage is counted", seconds=30)


def test_a_command_of_the_models_own_serves_files_that_we_cannot_read(described: Running) -> None:
    program, model = described.home / "serve.py", described.home / "a folder" / "weights.bin"
    program.write_text(SERVER)
    model.parent.mkdir()
    model.write_bytes(b"x" * 1000)
    command = f"python3 '{program}' {{{{port}}}} /health {{{{model_name}}}}"

    described.cli("deploy", str(model), "--name", "own", "--backend", "Custom", "--run-command", command)

    assert ask(described, "own")["choices"][0]["message"]["content"] == "I am own"
    described.cli(
        "update", "own", "--run-command", f"python3 '{program}' {{{{port}}}} /health 'somebody else'"
    )
    assert ask(described, "own")["choices"][0]["message"]["content"] == "I am somebody else"
    counted(described, {"own": {"prompt_tokens": 7, "completion_tokens": 5}})
    # An engine that reads such a file itself says that it cannot.
    described.cli("deploy", str(model), "--name", "unread", "--backend", "llama-cpp", "--no-wait")
    assert "weights.bin is not a model file: it starts with 'xxxx" in failed(described, "unread")


def test_what_is_wrong_is_one_clear_line(described: Running) -> None:
    file = described.home / "bad.yaml"
    for text, says in (
        (
            "backend_name: bad\nversion_configs:\n  a: {run_comand: x}\n",
            "bad.yaml:3: version_configs.a.run_comand: there",
        ),
        (
            "backend_name: bad\ndefault_run_command: serve {{prot}}\n",
            "bad.yaml:2: default_run_command: there is no place",
        ),
        ("backend_name: bad\n  x: [", "bad.yaml:2: mapping values are not allowed here"),
    ):
        file.write_text(text)
        done = described.cli("backends", "apply", str(file), check=False)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert says in done.stderr
    common = ("deploy", "./tiny.gguf", "--backend", "custom", "--no-wait", "--name")
    done = described.cli(*common, "unknown", "--run-command", "serve {{prot}}", check=False)
    assert (done.returncode, "there is no placeholder {{prot}}; the known ones are" in done.stderr) == (
        2,
        True,
    )
    described.cli(*common, "missing", "--run-command", "no-such-program {{port}}")
    assert failed(described, "missing").startswith(
        "run_command: there is no program 'no-such-program' on this worker"
    )


def test_a_health_path_that_never_answers_is_one_clear_line(described: Running) -> None:
    program = described.home / "unhealthy.py"
    program.write_text(SERVER)
    file = described.home / "unhealthy.yaml"
    file.write_text(
        f"backend_name: unhealthy\ndefault_run_command: python3 '{program}' {{{{port}}}} /health x\n"
        "health_check_path: /never\n"
    )
    described.cli("backends", "apply", str(file))
    described.cli("deploy", "./tiny.gguf", "--name", "silent", "--backend", "unhealthy", "--no-wait")
    eventually(lambda: instance_of(described, "silent")["state"] == "starting", "it starts", seconds=60)

    assert described.cli("backends", "show", "unhealthy", "--yaml").stdout == file.read_text()
    assert instance_of(described, "silent")["state"] == "starting"
    described.cli("rm", "silent", "--force")
    assert "Removed the description of unhealthy." in described.cli("backends", "delete", "unhealthy").stdout
