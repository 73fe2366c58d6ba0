"""What a model keeps of the tokens it has seen: keys and values, compressed vectors, states."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.plugin.errors import Refused
from gpustack.plugin.memory.division import Division
from gpustack.plugin.values import ModelFacts

#: Bytes of one element. Quantised types come in blocks of 32 with a scale, so that one has a fraction.
_TYPES = {
    "f32": 4.0,
    "float32": 4.0,
    "f16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "bf16": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "fp8_inc": 1.0,
    "int8": 1.0,
    # FP4 with a scale of one byte for 16.
    "nvfp4": 0.5625,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


def element_bytes(name: str) -> float:
    """Return the bytes of one element of the type that engines call ``name``. Raises Refused for an unknown one."""
    if (size := _TYPES.get(name.lower())) is None:
        raise Refused(f"{name!r} is no type for keys and values; there are {', '.join(_TYPES)}")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What is to be kept, and how the engine lays it out. Contexts, windows and pages count tokens."""

    #: Of one request, prompt and answer together.
    context: int
    #: Requests that are kept at a time.
    sequences: int = 1
    key_type: str = "f16"
    value_type: str = "f16"
    state_type: str = "f32"
    #: Cells are taken in multiples of this.
    page: int = 16
    #: Tokens computed at a time, which a window must hold besides itself.
    step: int = 0
    #: One pool of ``context`` is shared by all sequences, instead of that much for each.
    shared: bool = False
    #: Layers with a window keep the whole context all the same.
    full_windows: bool = False

    @property
    def cells(self) -> int:
        """Tokens of a layer that sees everything."""
        return self._padded(self.context) * (1 if self.shared else self.sequences)

    def window_cells(self, window: int) -> int:
        """Return the tokens of a layer that looks back ``window``."""
        if self.full_windows or not window:
            return self.cells
        windows = window * (self.sequences if self.shared else 1) + self.step
        return self._padded(min(self.context, windows)) * (1 if self.shared else self.sequences)

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.page) * self.page


def bytes_per_token(model: ModelFacts, key_type: str = "f16", value_type: str = "f16") -> float:
    """Return the bytes that one more token takes in all layers, while it is inside all windows."""
    one = Cache(context=1, key_type=key_type, value_type=value_type, page=1)
    return cache_bytes(model, one) - _state(model, one, Division())


def cache_bytes(model: ModelFacts, cache: Cache, division: Division | None = None) -> int:
    """Return the bytes of the cache on the GPU that keeps the most; without a ``division`` all of it.

    0 for a model whose layers are not known to keep anything.
    """
    division = division or Division()
    full, _ = _layers(model)
    keys, values = element_bytes(cache.key_type), element_bytes(cache.value_type)
    size = cache.cells * _full_row(model, keys, values, division) * division.stage(full)
    return int(size) + forgetting_bytes(model, cache, division)


def forgetting_bytes(model: ModelFacts, cache: Cache, division: Division | None = None) -> int:
    """Return the part of :func:`cache_bytes` that forgets: windows and states. An engine that is to go back to an
    earlier token must have kept a copy of it.
    """
    division = division or Division()
    _, window = _layers(model)
    keys, values = element_bytes(cache.key_type), element_bytes(cache.value_type)
    row = _window_row(model, keys, values, division) if window else 0
    size = cache.window_cells(model.sliding_window) * row * division.stage(window) if window else 0
    return int(size) + _state(model, cache, division)


def _full_row(model: ModelFacts, keys: float, values: float, division: Division) -> float:
    """Return the bytes of one token in one layer that sees everything; ``keys`` and ``values`` are of an element."""
    if model.latent_rank:
        # One vector serves all heads, so every GPU has it whole.
        return keys * (model.latent_rank + model.rotary_length + model.index_length)
    heads = _mean_heads(model, division)
    return heads * (keys * model.key_length + values * model.value_length) + keys * model.index_length


def _window_row(model: ModelFacts, keys: float, values: float, division: Division) -> float:
    """Return the same for a layer with a window."""
    if model.latent_rank:
        return _full_row(model, keys, values, division)
    heads = (
        division.kv_heads(model.window_kv_heads) if model.window_kv_heads else _mean_heads(model, division)
    )
    key = model.window_key_length or model.key_length
    value = model.window_value_length or model.value_length
    return heads * (keys * key + values * value)


def _layers(model: ModelFacts) -> tuple[int, int]:
    """Return how many layers keep keys of everything, and of a window."""
    window = model.window_layers if model.sliding_window else 0
    if model.kv_heads_by_layer:
        keeping = sum(1 for heads in model.kv_heads_by_layer if heads)
        return max(0, keeping - window), window
    return max(0, model.layers - model.state_layers - window), window


def _mean_heads(model: ModelFacts, division: Division) -> float:
    """Return the key/value heads that a layer has on one GPU; the mean of those that have any."""
    some = [division.kv_heads(heads) for heads in model.kv_heads_by_layer if heads]
    if some:
        return sum(some) / len(some)
    return division.kv_heads(model.kv_heads or model.attention_heads)


def _state(model: ModelFacts, cache: Cache, division: Division) -> int:
    elements = model.state_elements * cache.sequences / (division.tensor * division.pipeline)
    return int(elements * element_bytes(cache.state_type))
