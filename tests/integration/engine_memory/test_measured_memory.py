"""The estimate for llama.cpp against the real engine: what it logs of its buffers, and what its process takes.

Models have random weights, 0.3 to 2 GB of them. A few cases are looked at always; the grid is for test-full.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.engine_memory import MIB, Measured, measured
from support.random_gguf import Shape, random_gguf
from support.running import free_ports

#: How far off an estimate may be.
TOLERANCE = 0.10

SHAPES = {
    "llama": Shape(layers=8, hidden=1024, inner=2816),
    "llama-q8": Shape(layers=16, hidden=1536, heads=24, kv_heads=8, inner=4096, type="Q8_0"),
    "llama-q4k": Shape(layers=20, hidden=2048, heads=32, kv_heads=8, inner=5632, type="Q4_K"),
    "llama-q40": Shape(layers=16, hidden=2048, heads=32, kv_heads=8, inner=5632, type="Q4_0"),
    "llama-q6k": Shape(layers=12, hidden=1536, heads=24, kv_heads=8, inner=4096, type="Q6_K"),
    "llama-2gb": Shape(
        layers=24, hidden=2048, heads=32, kv_heads=32, inner=5632, type="Q8_0", vocabulary=64000
    ),
    "qwen2": Shape(
        architecture="qwen2",
        layers=12,
        hidden=896,
        heads=14,
        kv_heads=2,
        inner=4864,
        vocabulary=151936,
        tied=True,
    ),
    "qwen3": Shape(
        architecture="qwen3",
        layers=6,
        hidden=1024,
        kv_heads=8,
        head=128,
        inner=3072,
        vocabulary=151936,
        tied=True,
        type="Q8_0",
    ),
    "embedding": Shape(architecture="qwen3", layers=10, kv_heads=8, inner=3072, pooling=3),
    "experts": Shape(architecture="qwen3moe", head=128, inner=384, experts=32, experts_used=4, type="Q8_0"),
    "windows": Shape(
        architecture="gemma3",
        layers=12,
        hidden=1152,
        heads=4,
        kv_heads=1,
        head=256,
        inner=4608,
        vocabulary=65536,
        tied=True,
        window=512,
    ),
    "wide-windows": Shape(
        architecture="gemma2",
        layers=12,
        heads=8,
        kv_heads=4,
        head=256,
        inner=4096,
        vocabulary=65536,
        tied=True,
        window=4096,
    ),
    "latent": Shape(
        architecture="deepseek2",
        kv_heads=16,
        head=128,
        rotary=64,
        latent=512,
        inner=512,
        experts=8,
        experts_used=4,
    ),
    "states": Shape(architecture="mamba", layers=16, heads=0, kv_heads=0, head=0, inner=0, state=16),
}

Measure = Callable[..., Measured]


@pytest.fixture
def measure(engine: InstalledEngine, tmp_path: Path) -> Measure:
    """Return what measures one shape."""

    def run(shape: Shape, *parameters: str, tokens: int = 600, prompts: int = 1) -> Measured:
        port = free_ports(1)[0]
        return measured(engine, tmp_path, shape, *parameters, port=port, tokens=tokens, prompts=prompts)

    return run


def holds(found: Measured) -> None:
    """Check both: the buffers that the engine logs, and its process."""
    claim, logged = found.claim.ram, found.buffers
    shown = (
        f"estimated {claim / MIB:.1f} MiB, process {found.process / MIB:.1f} MiB, "
        f"buffers { ({kind: round(size / MIB, 1) for kind, size in logged.items()}) }"
    )
    print(shown)  # with -s it is the table of a run
    assert found.process == pytest.approx(claim, rel=TOLERANCE), shown
    assert sum(logged.values()) < claim, shown


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama", ("--ctx-size 4096", "--parallel 4")),
        ("experts", ("--ctx-size 8192", "--parallel 1", "-ctk q8_0", "-ctv q8_0")),
        ("windows", ("--ctx-size 1024", "--parallel 1")),
    ],
)
def test_an_estimate_holds(measure: Measure, name: str, parameters: tuple[str, ...]) -> None:
    # Small steps: reading as many tokens as one has uses all buffers, and is soon done.
    holds(measure(SHAPES[name], *parameters, "--ubatch-size 128", "--cache-ram 0", tokens=130))


# The grid -----------------------------------------------------------------------------------------------

#: These have what forgets, and get other prompts.
FORGETTING = ("windows", "wide-windows", "states")
SETTINGS = {
    "short": ("--ctx-size 2048", "--parallel 1"),
    "long": ("--ctx-size 32768", "--parallel 1"),
    "four": ("--ctx-size 4096", "--parallel 4"),
    "pooled": ("--ctx-size 8192", "--parallel 4", "--kv-unified"),
    "eight-bits": ("--ctx-size 16384", "--parallel 1", "-ctk q8_0", "-ctv q8_0"),
    "four-bits": ("--ctx-size 16384", "--parallel 2", "-ctk q4_0", "-ctv q4_0"),
    "full-precision": ("--ctx-size 4096", "--parallel 1", "-ctk f32", "-ctv f32"),
    "small-steps": ("--ctx-size 4096", "--parallel 1", "--ubatch-size 128"),
    "large-steps": ("--ctx-size 4096", "--parallel 1", "--ubatch-size 1024"),
    "scores": ("--ctx-size 1024", "--parallel 1", "-fa off"),
    "unmapped": ("--ctx-size 2048", "--parallel 1", "--no-mmap"),
}
#: Every setting for a few shapes, and a few settings for every shape.
GRID = [(name, setting) for name in ("llama", "experts", "latent") for setting in SETTINGS] + [
    (name, setting)
    for name in SHAPES
    for setting in ("short", "four", "eight-bits")
    if name not in ("llama", "experts", "latent", *FORGETTING)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), GRID)
def test_the_grid(measure: Measure, name: str, setting: str) -> None:
    # As many tokens as are computed at once, so that its buffers are used as far as they are reserved; scores of all
    # tokens for all others are for the whole context.
    tokens = {"large-steps": 1100, "scores": 1000}.get(setting, 600)
    holds(measure(SHAPES[name], *SETTINGS[setting], "--cache-ram 0", tokens=tokens))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [
        ("windows", ("--ctx-size 2048", "--parallel 2"), 1900),
        ("windows", ("--ctx-size 2048", "--parallel 1", "--swa-full"), 1900),
        ("windows", ("--ctx-size 2048", "--parallel 1", "-ctk q8_0", "-ctv q8_0"), 1900),
        ("wide-windows", ("--ctx-size 1024", "--parallel 2"), 1000),
        ("wide-windows", ("--ctx-size 1024", "--parallel 1", "--ubatch-size 128"), 1000),
        ("states", ("--ctx-size 2048", "--parallel 4"), 1900),
        ("states", ("--ctx-size 2048", "--parallel 1"), 1900),
    ],
)
def test_what_forgets(measure: Measure, name: str, parameters: tuple[str, ...], tokens: int) -> None:
    """Copies of windows and states are kept beside the context, so the prompts fill it and every slot has one."""
    prompts = 2 * int(dict(each.split() for each in parameters if " " in each)["--parallel"])
    holds(measure(SHAPES[name], *parameters, "--cache-ram 0", tokens=tokens, prompts=prompts))


@pytest.mark.slow
def test_kept_prompts_are_counted(measure: Measure) -> None:
    """Prompts of 1000 tokens take 8 MiB each: nine fill 64 MiB, and the oldest goes."""
    holds(
        measure(SHAPES["llama"], "--ctx-size 1024", "--parallel 1", "--cache-ram 64", tokens=1000, prompts=12)
    )


@pytest.mark.slow
def test_a_draft_model_is_counted(measure: Measure, tmp_path: Path) -> None:
    """Its file is known, its cache is counted as a half of the model's, which is what the largest of usual drafts have."""
    random_gguf(tmp_path / "draft.gguf", Shape(layers=4, hidden=512, heads=8, kv_heads=4, inner=1408))

    found = measure(
        SHAPES["llama"],
        *("--model-draft draft.gguf", "--ctx-size 8192", "--parallel 2", "--cache-ram 0"),
        tokens=600,
    )

    holds(found)
