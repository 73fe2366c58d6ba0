"""A stand-in for llama-box, whose releases cannot be reached: an archive as they are, with a small program in it.

The program knows llama-box's own flags, written as llama-box takes them, and drives the real llama.cpp with them. A build
that is linked dynamically does not start where its library is not found, as a real one would not.
"""

from __future__ import annotations

import hashlib
import platform

from support.archives import ArchiveServer, zip_of
from support.engine import InstalledEngine

VERSION = "v0.0.171"
_MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
FOLDER = f"/gpustack/llama-box/releases/download/{VERSION}"
DYNAMIC = f"dl-llama-box-linux-{_MACHINE}-cpu"
STATIC = f"llama-box-linux-{_MACHINE}-{'avx2' if _MACHINE == 'amd64' else 'neon'}"

#: Of a machine whose GPU's driver says nothing of its version.
CUDA = f"dl-llama-box-linux-{_MACHINE}-cuda-12.4"

_START = """\
#!/bin/sh
exec '{python}' -P "$(dirname "$(readlink -f "$0")")/stand_in.py" "$@"
"""
_PROGRAM = """\
import os, socket, sys, threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION, DYNAMIC = {version!r}, {dynamic!r}
ALONE = {{"--embeddings", "--metrics", "--no-mmap", "--mmap", "--no-warmup", "--warmup", "--rerank", "--flash-attn", "-fa",
         "--no-flash-attn", "--jinja", "--no-context-shift", "--context-shift", "--swa-full"}}
VALUED = {{"--host", "--port", "--model", "--alias", "--parallel", "--ctx-size", "--gpu-layers", "--tensor-split",
          "--batch-size", "--ubatch-size", "--threads", "--mmproj", "--max-projected-cache", "--rpc", "--temp", "--seed",
          "--cache-type-k", "--cache-type-v", "--lora", "--model-draft", "--draft-max",
          "--rpc-server-host", "--rpc-server-port", "--rpc-server-main-gpu"}}
HELLO = b"stand-in for an RPC server of llama-box\\n"


def fail(line):
    print(line, file=sys.stderr, flush=True)
    sys.exit(1)


def parse(words):
    found, words = {{}}, list(words)
    while words:
        flag = words.pop(0)
        if flag in ALONE:
            found[flag] = ""
        elif flag in VALUED and words:
            found[flag] = words.pop(0)
        else:
            fail(f"Unknown argument: {{flag}}")
    return found


def lend(host, port):
    server = socket.create_server((host, port))
    print(f"rpc server listening ip = {{host}} port = {{port}}", file=sys.stderr, flush=True)
    while True:
        client, (address, *_) = server.accept()
        print(f"accepted connection from {{address}}", file=sys.stderr, flush=True)
        threading.Thread(target=hold, args=(client,), daemon=True).start()


def hold(client):
    with client:
        client.sendall(HELLO)
        client.recv(1)


def borrow(servers):
    held = []
    for each in servers.split(","):
        host, _, port = each.rpartition(":")
        try:
            held.append(socket.create_connection((host.strip("[]"), int(port)), timeout=5))
            assert held[-1].recv(len(HELLO), socket.MSG_WAITALL) == HELLO
        except (OSError, AssertionError) as error:
            fail(f"failed to register RPC device {{each}}: {{error}}")
        print(f"uses the GPU at {{each}}", file=sys.stderr, flush=True)
    return held


def serve(given):
    from gpustack_llama_server.main import main

    asked = {{name: given[name] for name in given.keys() - {{
        "--embeddings", "--no-mmap", "--mmap", "--max-projected-cache", "--rpc", "--flash-attn", "-fa", "--no-flash-attn"}}}}
    # llama.cpp serves either vectors or text, llama-box both.
    if "--rerank" not in given and b"bert" in Path(given["--model"]).read_bytes()[:4096]:
        asked["--embeddings"] = ""
    if "--mmap" not in given:
        asked["--no-mmap"] = ""
    # All requests share the context.
    asked["--kv-unified"] = ""
    return main([word for name, value in asked.items() for word in (name, value) if word != ""])


if sys.argv[1:] == ["--version"]:
    print(f"version    : {{VERSION}} (stand-in)", file=sys.stderr)
    sys.exit(0 if not DYNAMIC or str(HERE) in os.environ.get("LD_LIBRARY_PATH", "").split(":") else 127)
if DYNAMIC and str(HERE) not in os.environ.get("LD_LIBRARY_PATH", "").split(":"):
    fail("error while loading shared libraries: libllama-box.so: cannot open shared object file")
given = parse(sys.argv[1:])
if int(given.get("--rpc-server-port", 0)):
    lend(given["--rpc-server-host"], int(given["--rpc-server-port"]))
borrowed = borrow(given["--rpc"]) if "--rpc" in given else []
sys.exit(serve(given))
"""


def stand_in_archive(engine: InstalledEngine, *, dynamic: bool = True) -> bytes:
    """Return an archive as llama-box's releases are, whose program drives the llama.cpp of ``engine``."""
    python = engine.command.resolve().parent / "python"
    return zip_of(
        **{
            "llama__box": _START.format(python=python),
            "stand_in.py": _PROGRAM.format(version=VERSION, dynamic=dynamic),
            "libllama__box.so": "as it were",
        }
    )


def serve_releases(server: ArchiveServer, engine: InstalledEngine) -> None:
    """Have ``server`` offer builds for the processor and GPUs of this machine, with the list of their digests."""
    lines = []
    for name, dynamic in ((DYNAMIC, True), (STATIC, False), (CUDA, True)):
        archive = stand_in_archive(engine, dynamic=dynamic)
        server.files[f"{FOLDER}/{name}.zip"] = archive
        lines.append(f"{hashlib.sha256(archive).hexdigest()}  {name}.zip\n")
    server.files[f"{FOLDER}/sha256sum.txt"] = "".join(lines).encode()
