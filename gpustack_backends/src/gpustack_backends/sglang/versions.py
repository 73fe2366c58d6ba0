"""What differs between SGLang's versions, and what is installed of each.

Found by reading the argument parsers of all of them; ``tests/engines`` holds the command lines against those.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from functools import lru_cache
from pathlib import Path

from gpustack.plugin import ModelFacts, PipxPackage, Refused
from gpustack.plugin.flags import Flags

#: The version that this release knows best.
VERSION = "0.5.23"
#: The first version whose command line is known here.
OLDEST = (0, 4, 9)
_VERSION = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)(\.(0|[1-9]\d*)){0,2}((a|b|rc)(0|[1-9]\d*))?(\.post(0|[1-9]\d*))?(\+[a-z0-9]+(\.[a-z0-9]+)*)?"
)

Number = tuple[int, ...]

#: It has the command ``sglang serve``, which also tells its version.
SERVE: Number = (0, 5, 8)
DEFAULT_USAGE: Number = (0, 5, 10)
#: Flags that users may give, with the version that they came with.
_SINCE: dict[str, Number] = {
    "--stream-response-default-include-usage": DEFAULT_USAGE,
    "--attn-dp-size": (0, 5, 22),
}

#: Architectures, as config.json names them, with the first version that serves them; those that nobody has looked up are
#: not in it.
_ARCHITECTURES: dict[str, Number] = {
    "glm4_moe": (0, 4, 10),
    **dict.fromkeys(("gpt_oss", "glm4v_moe", "ernie4_5_moe"), (0, 5, 1)),
    **dict.fromkeys(("qwen3_next", "longcat_flash"), (0, 5, 2)),
    **dict.fromkeys(("deepseek_v32", "qwen3_vl", "qwen3_vl_moe"), (0, 5, 3)),
    "mimo_v2_flash": (0, 5, 7),
    "glm4_moe_lite": (0, 5, 8),
    **dict.fromkeys(
        ("qwen3_5", "qwen3_5_moe", "glm_moe_dsa", "kimi_k25", "step3p5", "exaone4", "lfm2"), (0, 5, 9)
    ),
    "gemma4": (0, 5, 11),
    "deepseek_v4": (0, 5, 12),
}

_PACKAGE = "gpustack-sglang"
_MODULE = "gpustack_sglang"
#: Wheels are zip files, whose time starts here; a fixed one makes equal wheels of equal sources.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def number(version: str) -> Number:
    """Return a version as a tuple that compares. Raises Refused for what is no version, and for one that is too old."""
    if not _VERSION.fullmatch(version):
        raise Refused(f"{version!r} is no version of SGLang; they look like {VERSION}")
    found = tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:3] if part.isdecimal())
    if found < OLDEST:
        raise Refused(f"SGLang {version} is too old for GPUStack, which needs {shown(OLDEST)} or newer")
    return found


def shown(found: Number) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, found))


def check_flags(flags: Flags, version: str) -> None:
    """Raise Refused for flags that came with a later version, with that version."""
    found = number(version)
    for each in flags.given:
        if found < (since := _SINCE.get(each.name, OLDEST)):
            raise Refused(f"{each.name} needs SGLang {shown(since)} or newer, and this is {version}")


def check_model(model: ModelFacts, version: str) -> None:
    """Raise Refused when the model's architecture came with a later version, with that version."""
    since = _ARCHITECTURES.get(model.architecture)
    if since is not None and number(version) < since:
        raise Refused(
            f"models of architecture {model.architecture} need SGLang {shown(since)} or newer, and this is {version}; "
            "name a newer one with --backend-version, or none"
        )


def package(version: str) -> PipxPackage:
    """Return what to install: SGLang itself, or for versions without a command a package of ours around it."""
    if number(version) >= SERVE:
        return PipxPackage(
            package="sglang", version=version, command="sglang", verify=("version",), imports=("sglang",)
        )
    name, wheel = _wheel(version)
    return PipxPackage(
        package=_PACKAGE,
        version=version,
        command=_PACKAGE,
        wheel=wheel,
        wheel_name=name,
        imports=("sglang",),
    )


@lru_cache(maxsize=8)
def _wheel(version: str) -> tuple[str, bytes]:
    info = f"{_MODULE}-{version}.dist-info"
    source = Path(__file__).with_name("module_form.py").read_bytes().replace(b"\r\n", b"\n")
    files = {
        f"{_MODULE}.py": source,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.4\nName: {_PACKAGE}\nVersion: {version}\nSummary: A command around SGLang\n"
            f"License-Expression: Apache-2.0\nRequires-Dist: sglang[all]=={version}\n"
        ).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: gpustack-backends\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{_PACKAGE} = {_MODULE}:main\n".encode(),
    }
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{info}/RECORD"] = f"{''.join(lines)}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return f"{_MODULE}-{version}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
