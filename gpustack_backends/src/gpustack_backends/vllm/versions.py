"""What differs between vLLM's versions. Found by reading the argument parsers and registries of all of them.

``tests/engines`` holds the command lines against those parsers.
"""

from __future__ import annotations

import re

from gpustack.plugin import ModelFacts, Refused
from gpustack.plugin.flags import Flags

#: The version that this release is tested with.
VERSION = "0.32.0"
#: The first version whose command line is known here.
OLDEST = (0, 8, 5)
#: A version as packaging tools write it; another spelling of the same one would be a second installation.
_VERSION = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)(\.(0|[1-9]\d*)){0,2}((a|b|rc)(0|[1-9]\d*))?(\.post(0|[1-9]\d*))?"
    r"(\.dev(0|[1-9]\d*))?(\+[a-z0-9]+(\.[a-z0-9]+)*)?"
)

Number = tuple[int, ...]

#: What came with a version.
FORCED_USAGE: Number = (0, 9, 2)
RUNNER: Number = (0, 10, 1)
CACHE_BYTES: Number = (0, 10, 2)
NATIVE_NODES: Number = (0, 11, 1)
UNBOUND: Number = (0, 11, 1)
QUIET_PATHS: Number = (0, 16)
#: Flags that users may give, with the version that they came with.
_SINCE: dict[str, Number] = {
    "--enable-force-include-usage": FORCED_USAGE,
    "--runner": RUNNER,
    "--convert": RUNNER,
    "--kv-cache-memory-bytes": CACHE_BYTES,
    "--kv-offloading-size": (0, 11, 1),
    "--kv-offloading-backend": (0, 11, 1),
    "--spec-method": (0, 22),
    "--spec-model": (0, 22),
    "--spec-tokens": (0, 22),
}
#: Flags that went, with the first version without them, and what to write there.
_UNTIL: dict[str, tuple[Number, str]] = {
    "--task": ((0, 13), "use --runner and --convert"),
    "--swap-space": ((0, 18), "use --kv-offloading-size"),
}
#: Architectures, as config.json names them, with the first version that serves them. Older ones than vLLM's oldest
#: here, and those that nobody has looked up, are not in it: vLLM itself says what it does not know.
_ARCHITECTURES: dict[str, Number] = {
    **dict.fromkeys(("granitemoehybrid", "mimo"), (0, 9)),
    "nemotron_h": (0, 9, 1),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "gemma3n", "minimax_m1"), (0, 9, 2)),
    **dict.fromkeys(("exaone4", "glm4_moe"), (0, 10)),
    **dict.fromkeys(("gpt_oss", "glm4v_moe", "internlm_s1", "smollm3"), (0, 10, 1)),
    **dict.fromkeys(("qwen3_next", "seed_oss", "lfm2"), (0, 10, 2)),
    **dict.fromkeys(("deepseek_v32", "longcat_flash", "olmo3", "qwen3_vl", "qwen3_vl_moe"), (0, 11)),
    **dict.fromkeys(("kimi_linear", "lfm2_moe", "minimax_m2", "qwen3_omni_moe"), (0, 11, 1)),
    "mimo_v2_flash": (0, 14),
    **dict.fromkeys(("glm4_moe_lite", "kimi_k25", "step3p5"), (0, 15)),
    **dict.fromkeys(("glm_moe_dsa", "glm_ocr"), (0, 16)),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), (0, 17)),
    "gemma4": (0, 19),
    **dict.fromkeys(("deepseek_v4", "exaone4_5"), (0, 20)),
    "qwen4_exp": (0, 29),
    "step5": (0, 33),
}


def number(version: str) -> Number:
    """Return a version as a tuple that compares. Raises Refused for what is no version, and for one that is too old."""
    if not _VERSION.fullmatch(version):
        raise Refused(f"{version!r} is no version of vLLM; they look like {VERSION}")
    found = tuple(int(part) for part in re.split(r"[^\d.]", version)[0].rstrip(".").split("."))
    if found < OLDEST:
        raise Refused(f"vLLM {version} is too old for GPUStack, which needs {shown(OLDEST)} or newer")
    return found


def shown(found: Number) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, found))


def check_model(model: ModelFacts, version: str) -> None:
    """Raise Refused when the model's architecture came with a later version, with that version."""
    since = _ARCHITECTURES.get(model.architecture)
    if since is not None and number(version) < since:
        raise Refused(
            f"models of architecture {model.architecture} need vLLM {shown(since)} or newer, and this is {version}; "
            "name a newer one with --backend-version, or none"
        )


def check_flags(flags: Flags, version: str) -> None:
    """Raise Refused for flags that ``version`` does not have any more, or not yet, with the version that does."""
    found = number(version)
    for each in flags.given:
        if found < (since := _SINCE.get(each.name, OLDEST)):
            raise Refused(f"{each.name} needs vLLM {shown(since)} or newer, and this is {version}")
        if each.name in _UNTIL and found >= _UNTIL[each.name][0]:
            until, instead = _UNTIL[each.name]
            raise Refused(
                f"{each.name} is not in vLLM {shown(until)} and newer, and this is {version}; {instead}"
            )
