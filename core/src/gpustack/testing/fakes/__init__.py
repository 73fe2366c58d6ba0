"""Stand-ins that are plugins themselves, for tests only: GPUs, an engine, a gateway and a login.

    fake-gpus      any fleet that a YAML file describes        gpustack.testing.fakes.gpus
    fake-engine    the backend ``fake``, without a model       gpustack.testing.fakes.backend, .engine
    fake-gateway   keeps the tables it is given                gpustack.testing.fakes.gateway
    fake-login     signs in whom it is told to                 gpustack.testing.fakes.login

No installation has them on its own. A process that is started with the folder of :func:`path` on ``PYTHONPATH`` has
them as plugins:

    env = {**os.environ, "PYTHONPATH": str(fakes.path("fake-engine"))}
    subprocess.run(["gpustack", "start"], env=env)
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

#: The entry points, by name.
PLUGINS = {
    "fake-gpus": "gpustack.testing.fakes.gpus",
    "fake-engine": "gpustack.testing.fakes.backend",
    "fake-gateway": "gpustack.testing.fakes.gateway",
    "fake-login": "gpustack.testing.fakes.login",
}


def path(*names: str, folder: Path | None = None) -> Path:
    """Return a folder that makes plugins of the fakes ``names``, or of all of them, when it is on ``PYTHONPATH``.

    It is made in ``folder``, or in a folder of its own that goes when this process ends. Raises ValueError for a
    name that is none of :data:`PLUGINS`.
    """
    if unknown := [each for each in names if each not in PLUGINS]:
        raise ValueError(f"there is no fake {unknown[0]!r}; there are {', '.join(PLUGINS)}")
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="gpustack-fakes-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
    info = folder / "gpustack_fakes-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gpustack-fakes\nVersion: 1.0\n", encoding="utf-8"
    )
    points = "".join(f"{name} = {PLUGINS[name]}\n" for name in (names or PLUGINS))
    (info / "entry_points.txt").write_text(f"[gpustack]\n{points}", encoding="utf-8")
    return folder


def a_model(folder: Path, name: str = "model") -> Path:
    """Make a model of a few bytes in ``folder`` and return its path: a worker takes it for a language model.

    It is a Hugging Face directory in form, and no engine but the fake one can serve it.
    """
    model = folder / name
    model.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 256,
        "max_position_embeddings": 2048,
    }
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return model
