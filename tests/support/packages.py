"""Tiny packages made on the spot, and an index on loopback that has them, for the real pipx with pip or uv."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpustack.plugin import PipxPackage

UV = Path(__file__).parents[2] / ".tools" / "uv" / "bin"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = """\
import sys
def main():
    {body}
"""


def a_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: tuple[str, ...] = (),
    command: str = "",
    body: str = "",
    size: int = 0,
) -> Path:
    """Make the wheel of a module ``name``; ``command`` runs ``body``, which tells the version unless said otherwise.

    ``size`` are bytes of noise that it holds besides.
    """
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{module}.py": _MAIN.format(body=body or f"print({name!r}, {version!r})").encode(),
        f"{info}/METADATA": (metadata + "".join(f"Requires-Dist: {each}\n" for each in requires)).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if size:
        files[f"{module}_noise.bin"] = os.urandom(size)
    if command:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{command} = {module}:main\n".encode()
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in files.items()
    )
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, data in files.items():
            archive.writestr(zipfile.ZipInfo(name_, _EPOCH), data)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Index:
    """An index on loopback; ``folder`` has its wheels."""

    folder: Path
    url: str = ""
    #: Every answer is 503.
    down: bool = False
    #: Seconds before a wheel is sent; and those whose wheels were asked for.
    slow: float = 0.0
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, **more: object) -> Path:
        return a_wheel(self.folder, name, version, **more)  # type: ignore[arg-type]

    def environ(self, tmp_path: Path, *, uv: bool) -> dict[str, str]:
        """Return an environment in which this is the only index, by pip's variable alone."""
        return {
            "PATH": f"{UV}:{os.environ['PATH']}" if uv else os.environ["PATH"],
            "HOME": str(tmp_path),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": self.url,
            "PIP_RETRIES": "0",
            "PIP_NO_CACHE_DIR": "1",
            "UV_CACHE_DIR": str(tmp_path / "uv cache"),
            "UV_HTTP_RETRIES": "0",
            "PIPX_DEFAULT_BACKEND": "uv" if uv else "pip",
        }


@contextmanager
def an_index(folder: Path) -> Iterator[Index]:
    """Serve ``folder`` until the block ends."""
    index = Index(folder)
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = [part for part in self.path.split("/") if part]
            if index.down:
                self._send(503, b"")
            elif parts[0] == "index" and len(parts) == 2:
                self._page(parts[1])
            elif parts[0] == "files":
                if self.command == "GET":
                    index.asked.append(parts[1])
                    time.sleep(index.slow)
                self._send(200, (folder / parts[1]).read_bytes())
            else:
                self._send(404, b"")

        do_HEAD = do_GET

        def _page(self, name: str) -> None:
            module = f"{name.replace('-', '_')}-"
            found = sorted(path for path in folder.iterdir() if path.name.startswith(module))
            links = "".join(
                f'<a href="/files/{path.name}#sha256={sha256(path)}">{path.name}</a>' for path in found
            )
            self._send(200 if found else 404, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # Those who ask are killed in tests.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    index.url = f"http://127.0.0.1:{server.server_address[1]}/index/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


def an_engine(version: str = "1.0", **more: object) -> PipxPackage:
    """Return what a backend would say of the package ``acme-engine``."""
    return PipxPackage(package="acme-engine", version=version, command="acme", **more)  # type: ignore[arg-type]
