"""Makes the wheel of ``gpustack-llama-server`` for any version of the engine.

The launcher is the same few files for all versions; what differs is the version in its metadata, which also
pins ``xllamacpp``. The source lies in this package (``_launcher``) when it was installed from a wheel, and in
the repository's ``plugins/gpustack-llama-server`` when it was installed editable.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

PACKAGE = "gpustack-llama-server"
COMMAND = "gpustack-llama-server"
#: The version of xllamacpp that is tested with this release.
VERSION = "2026.10.11549"

_MODULE = "gpustack_llama_server"
_METADATA = """\
Metadata-Version: 2.4
Name: gpustack-llama-server
Version: {version}
Summary: A llama-server command around the xllamacpp wheel
Author: The GPUStack authors
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.11
Requires-Dist: xllamacpp=={version}
"""
_WHEEL = """\
Wheel-Version: 1.0
Generator: gpustack-backends
Root-Is-Purelib: true
Tag: py3-none-any
"""
_ENTRY_POINTS = f"""\
[console_scripts]
{COMMAND} = {_MODULE}.main:main
"""
#: Wheels are zip files, whose time starts here; a fixed one makes equal wheels of equal sources.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@lru_cache(maxsize=8)
def launcher_wheel(version: str) -> tuple[str, bytes]:
    """Return the file name and content of the wheel that runs ``xllamacpp`` of ``version``."""
    info = f"{_MODULE}-{version}.dist-info"
    files = _source()
    licence = files.pop("LICENSE")
    files |= {
        f"{info}/METADATA": _METADATA.format(version=version).encode(),
        f"{info}/WHEEL": _WHEEL.encode(),
        f"{info}/entry_points.txt": _ENTRY_POINTS.encode(),
        f"{info}/licenses/LICENSE": licence,
    }
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    return f"{_MODULE}-{version}-py3-none-any.whl", _zip(files)


@lru_cache(maxsize=8)
def lock_of(version: str) -> str:
    """Return what the engine of ``version`` is made of, with hashes; empty for those that come without a lock."""
    return Path(__file__).with_name("lock.txt").read_text(encoding="utf-8") if version == VERSION else ""


def _source() -> dict[str, bytes]:
    folder, licence = _places()
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".py" or path.name == "py.typed")
    # Text is stored as the repository has it, wherever it was checked out.
    files = {f"{_MODULE}/{path.name}": path.read_bytes().replace(b"\r\n", b"\n") for path in paths}
    return files | {"LICENSE": licence.read_bytes()}


def _places() -> tuple[Path, Path]:
    here = Path(__file__).resolve()
    shipped = here.parent / "_launcher"
    if shipped.is_dir():
        return shipped / _MODULE, shipped / "LICENSE"
    plugin = here.parents[4] / "plugins" / PACKAGE
    return plugin / "src" / _MODULE, plugin / "LICENSE"


def _record(files: dict[str, bytes], itself: str) -> str:
    import base64
    import hashlib

    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{itself},,\n"])


def _zip(files: dict[str, bytes]) -> bytes:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
