"""Files that lie beside the tiny chat model: what lets it see pictures, and an adapter. Random, like the model itself."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from support.cache import CACHE, made_once
from support.tiny_models import HEAD_SIZE, HEADS, HIDDEN, LAYERS

if TYPE_CHECKING:
    import gguf
    import numpy as np

_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
#: The encoder's width, its feed-forward part, the side of a picture and of a part of it, in pixels.
_WIDTH, _INNER, _SIDE, _PART = 64, 128, 56, 14
#: Tokens that a picture becomes.
TOKENS = (_SIDE // _PART) ** 2


def make_tiny_projector() -> Path:
    """Return a projector (mmproj) for the tiny chat model: a vision transformer of two layers."""
    folder = CACHE / "models" / _VERSION / "tiny-projector"
    return made_once(folder, lambda half: _write_projector(half / "mmproj.gguf")) / "mmproj.gguf"


def make_tiny_adapter() -> Path:
    """Return a LoRA adapter of rank 4 for the tiny chat model, strong enough to change what it says."""
    folder = CACHE / "models" / _VERSION / "tiny-adapter"
    return made_once(folder, lambda half: _write_adapter(half / "adapter.gguf")) / "adapter.gguf"


def picture(red: int, green: int, blue: int) -> dict[str, object]:
    """Return a picture of one colour as a part of a message: a PNG in a data URL."""
    rows = b"".join(b"\0" + bytes((red, green, blue)) * 64 for _ in range(64))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _write_projector(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("tiny-random-projector")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    for name, number in (
        ("image_size", _SIDE),
        ("patch_size", _PART),
        ("embedding_length", _WIDTH),
        ("feed_forward_length", _INNER),
        ("projection_dim", HIDDEN),
        ("block_count", 2),
        ("attention.head_count", 2),
    ):
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    for name, tensor in _projector_weights().items():
        writer.add_tensor(name, tensor)
    _finish(writer)


def _projector_weights() -> dict[str, np.ndarray]:
    make = _Random(2)
    weights = {
        "v.patch_embd.weight": make.random(_WIDTH, 3, _PART, _PART),
        "v.class_embd": make.random(_WIDTH),
        "v.position_embd.weight": make.random(TOKENS + 1, _WIDTH),
        "mm.0.weight": make.random(HIDDEN, _WIDTH),
        "mm.0.bias": make.zeros(HIDDEN),
        "mm.2.weight": make.random(HIDDEN, HIDDEN),
        "mm.2.bias": make.zeros(HIDDEN),
    }
    for name in ("pre_ln", "post_ln"):
        weights |= {f"v.{name}.weight": make.ones(_WIDTH), f"v.{name}.bias": make.zeros(_WIDTH)}
    for layer in range(2):
        start = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            weights |= {f"{start}{name}.weight": make.random(_WIDTH, _WIDTH)}
            weights |= {f"{start}{name}.bias": make.zeros(_WIDTH)}
        for name in ("ln1", "ln2"):
            weights |= {f"{start}{name}.weight": make.ones(_WIDTH), f"{start}{name}.bias": make.zeros(_WIDTH)}
        # In this kind of projector, what is called down comes first.
        weights |= {f"{start}ffn_down.weight": make.random(_INNER, _WIDTH)}
        weights |= {f"{start}ffn_down.bias": make.zeros(_INNER)}
        weights |= {f"{start}ffn_up.weight": make.random(_WIDTH, _INNER)}
        weights |= {f"{start}ffn_up.bias": make.zeros(_WIDTH)}
    return weights


def _write_adapter(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_name("tiny-random-adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 64.0)
    make = _Random(4)
    for layer in range(LAYERS):
        for name, size in (("attn_q", HEADS * HEAD_SIZE), ("attn_output", HIDDEN)):
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", make.random(4, HIDDEN) * 10)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", make.random(size, 4) * 10)
    _finish(writer)


class _Random:
    """Weights that are the same on every run."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self._numpy = np
        self._generator = np.random.default_rng(seed)

    def random(self, *shape: int) -> np.ndarray:
        return (self._generator.standard_normal(shape) * 0.05).astype(self._numpy.float32)

    def ones(self, size: int) -> np.ndarray:
        return self._numpy.ones(size, self._numpy.float32)

    def zeros(self, size: int) -> np.ndarray:
        return self._numpy.zeros(size, self._numpy.float32)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
