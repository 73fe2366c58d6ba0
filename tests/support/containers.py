"""A Docker engine of the tests' own, with an image of GPUStack and without any registry or network.

The engine's data and socket lie in a temporary folder, and it leaves bridges and firewall of the machine alone. The
base image is made of the distribution's packages; whatever pip wants in an image or a container is fetched once as
this machine fetches it, and served on loopback. Both are kept below ``.cache/containers``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.cache import CACHE, made_once
from support.running import eventually

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = "gpustack-test-base"
#: Who may use a registry that wants a login, and bcrypt's digest of the password.
USER, PASSWORD = "tester", "sesame"
_DIGEST = "$2b$04$6C6aQMvQoO36Y15ueN97JucRkB9RzK01fzrLo32hlEw9SS9OZU7mi"
#: What a slim image of the distribution has, as far as ours asks for it.
_PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "sed", "passwd"),
    *("libpam-modules", "python3", "python3-venv", "libgomp1", "libstdc++6"),
)
#: Packages are unpacked and not set up, which takes a quarter of the time; this is what of it is needed.
_ACCOUNTS = 'for f in passwd group; do cp "$1/usr/share/base-passwd/$f.master" "$1/etc/$f"; done'
_PYTHON = "/usr/bin/python3"


@dataclass
class Docker:
    """A running engine; calling it runs the client."""

    socket: Path

    def __call__(self, *args: str | Path, check: bool = True, timeout: float = 120) -> str:
        done = subprocess.run(
            [_program("docker"), "--host", f"unix://{self.socket}", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            # The client of Debian 12 takes the classic builder unless told; its configuration is the user's own.
            env={**os.environ, "DOCKER_BUILDKIT": "1", "DOCKER_CONFIG": str(self.socket.parent)},
        )
        assert not check or done.returncode == 0, f"docker {' '.join(map(str, args))}:\n{done.stdout}"
        return done.stdout.strip()


@dataclass(frozen=True)
class Registry:
    """A running registry."""

    #: As it stands in front of an image's name.
    name: str


def _program(name: str) -> str:
    """Return the distribution's own ``name``, which has its builder beside it; else any, or ""."""
    return shutil.which(name, path=f"/usr/bin:/usr/sbin:{os.environ.get('PATH', '')}") or ""


def require_docker() -> None:
    """Skip the test where no engine can run."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a Docker engine of the tests' own needs root")
    for program in ("dockerd", "docker", "mmdebstrap", "docker-registry"):
        if not _program(program):
            pytest.skip(f"{program} is missing; `make test` as root installs it on Debian and its kin")


class DockerEngine(Docker):
    """An engine that can be stopped and started again; what it keeps stays until :meth:`discard`."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="gpustack-docker-")) / "docker.sock")
        self._life: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = self.socket.parent
        # Should this process be killed, the engine ends too.
        command = ["setpriv", "--pdeathsig", "TERM", _program("dockerd"), "--host", f"unix://{self.socket}"]
        command += [
            "--data-root",
            f"{folder}/data",
            "--exec-root",
            f"{folder}/exec",
            "--pidfile",
            f"{folder}/pid",
        ]
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._life.append(process)
        eventually(lambda: process.poll() is not None or _answers(self), "dockerd answers", seconds=60)
        assert process.poll() is None, f"dockerd ended:\n{(folder / 'log').read_text()[-4000:]}"

    def stop(self) -> None:
        """Stop it; it ends its containers."""
        for process in self._life:
            process.terminate()
            process.wait(60)
        self._life.clear()

    def discard(self) -> None:
        """End it with everything it has."""
        for container in self("ps", "--quiet", check=False).splitlines():
            self("kill", container, check=False)
        self.stop()
        _remove(self.socket.parent)


@contextlib.contextmanager
def docker_engine() -> Iterator[DockerEngine]:
    """Run an engine until the block ends; its images, containers and volumes go with it."""
    docker = DockerEngine()
    try:
        docker.start()
        yield docker
    finally:
        docker.discard()


@contextlib.contextmanager
def registry(folder: Path, port: int, *, login: bool = False) -> Iterator[Registry]:
    """Run a registry on loopback that keeps its images in ``folder``, until the block ends.

    With ``login`` it lets in :data:`USER` with :data:`PASSWORD` alone.
    """
    (folder / "users").write_text(f"{USER}:{_DIGEST}\n")
    auth = f"auth: {{htpasswd: {{realm: tests, path: {folder}/users}}}}\n" if login else ""
    settings = folder / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    with (folder / "registry.log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", _program("docker-registry"), "serve", settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: _listens(port), "the registry listens", seconds=30)
        assert process.poll() is None, (folder / "registry.log").read_text()[-2000:]
        yield Registry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _answers(docker: Docker) -> bool:
    return docker("version", "--format", "{{.Server.Os}}", check=False) == "linux"


def _remove(folder: Path) -> None:
    """Remove ``folder`` with what is mounted in it: an engine leaves the name of its network there."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True, timeout=30)
    shutil.rmtree(folder)


def base_image() -> Path:
    """Return an archive of a small root file system with this distribution's Python."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    recipe = hashlib.sha256(repr((codename, _PACKAGES, _ACCOUNTS)).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        include = f"--include={','.join(_PACKAGES)}"
        command = ["mmdebstrap", "--quiet", "--variant=extract", include, f"--customize-hook={_ACCOUNTS}"]
        subprocess.run([*command, codename, folder / "base.tar"], check=True, timeout=600)

    return made_once(CACHE / "containers" / f"base-{recipe}", make) / "base.tar"


def engine_image() -> Path:
    """Return an archive of a root file system with llama.cpp and our launcher as ``gpustack-llama-server``."""
    from gpustack_backends.llama_cpp.launcher import COMMAND, VERSION, launcher_wheel

    base = base_image()
    _, launcher = launcher_wheel(VERSION)
    script = (
        "#!/usr/bin/python3\nimport sys\nsys.path.insert(0, '/opt/engine')\n"
        "from gpustack_llama_server.main import main\nsys.exit(main())\n"
    )
    recipe = hashlib.sha256(repr((str(base), VERSION, script)).encode() + launcher).hexdigest()[:12]

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            site = Path(place) / "opt" / "engine"
            site.mkdir(parents=True)
            subprocess.run([_PYTHON, "-m", "venv", f"{place}/venv"], check=True, timeout=120)
            done = subprocess.run(
                [
                    f"{place}/venv/bin/pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--only-binary",
                    ":all:",
                    "--dest",
                    place,
                    f"xllamacpp=={VERSION}",
                ],
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr
            for wheel in (*Path(place).glob("*.whl"), io.BytesIO(launcher)):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
            shutil.copyfile(base, folder / "engine.tar")
            with tarfile.open(folder / "engine.tar", "a") as archive:
                archive.add(site, "./opt/engine")
                entry = tarfile.TarInfo(f"./usr/local/bin/{COMMAND}")
                entry.mode, entry.size = 0o755, len(script)
                archive.addfile(entry, io.BytesIO(script.encode()))

    return made_once(CACHE / "containers" / f"engine-{recipe}", make) / "engine.tar"


def wheels(*packages: str) -> Path:
    """Return a folder with all that the image is built from, and ``packages``, for this distribution's Python."""
    files = [ROOT / "requirements" / f"{name}.txt" for name in ("build", "runtime")]
    found = hashlib.sha256(b"".join(file.read_bytes() for file in files) + repr(packages).encode())

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            # Its own pip evaluates the markers as the container's will.
            subprocess.run([_PYTHON, "-m", "venv", place], check=True, timeout=120)
            fetch = [f"{place}/bin/pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            for wanted in (*(["--require-hashes", "-r", str(file)] for file in files), list(packages)):
                done = subprocess.run(
                    [*fetch, "--dest", folder, *wanted], capture_output=True, text=True, timeout=600
                )
                assert done.returncode == 0, done.stderr

    return made_once(CACHE / "containers" / f"wheels-{found.hexdigest()[:12]}", make)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve ``folder`` on loopback until the block ends, as a page of links that pip can search."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="wheels")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # its name in the base class
        """Say nothing of each request."""


def build_image(docker: Docker, links: str, folder: Path, *, tag: str = "gpustack") -> str:
    """Build the repository's Dockerfile on the local base, with packages from ``links``; return the image's name."""
    if not docker("images", "--quiet", BASE_IMAGE):
        docker("import", base_image(), BASE_IMAGE)
    settings = folder / "pip.conf"
    settings.write_text(f"[global]\nno-index = true\nfind-links = {links}\n")
    docker(
        *("build", "--progress", "plain", "--network", "host", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}"),
        *("--secret", f"id=pip.conf,src={settings}", "--tag", tag, ROOT),
        timeout=600,
    )
    return tag
