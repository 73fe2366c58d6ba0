"""Where the weights go when a model is cut."""

from __future__ import annotations

from itertools import pairwise

from gpustack.plugin.memory.division import Division
from gpustack.plugin.values import ModelFacts


def weight_bytes(model: ModelFacts, division: Division | None = None) -> int:
    """Return the bytes of weights on the GPU that has the most; without a ``division`` all of them.

    Of facts without tensors, all bytes of the files are taken for weights that are cut evenly.
    """
    division = division or Division()
    total = model.tensor_bytes or model.weight_bytes
    if division.gpus == 1:
        return total
    if not model.tensor_bytes:
        return -(-total // (division.tensor * division.pipeline))
    layers = _heaviest_stage(model, division)
    ends = _ends(model, total, division)
    experts = min(layers, -(-model.expert_bytes // division.pipeline))
    ranks = division.tensor * division.data if division.experts else division.tensor
    dense = layers - experts + ends + _doubled_heads(model, division)
    # Encoders of pictures are small and each GPU has them whole.
    return -(-dense // division.tensor) + -(-experts // ranks) + model.vision_bytes


def _heaviest_stage(model: ModelFacts, division: Division) -> int:
    """Return the bytes of the layers of the heaviest stage."""
    if not model.layer_bytes:
        inside = model.tensor_bytes - model.embedding_bytes - model.output_bytes - model.vision_bytes
        return -(-inside // division.pipeline)
    count, stages = len(model.layer_bytes), division.pipeline
    bounds = [round(stage * count / stages) for stage in range(stages + 1)]
    return max(sum(model.layer_bytes[start:end]) for start, end in pairwise(bounds))


def _ends(model: ModelFacts, total: int, division: Division) -> int:
    """Return the bytes outside the layers that one stage has at most: embeddings at the first, the head at the last."""
    outside = total - model.vision_bytes - sum(model.layer_bytes) if model.layer_bytes else 0
    outside = outside or model.embedding_bytes + model.output_bytes
    if division.pipeline == 1:
        return outside
    # A shared table is needed at both ends.
    return max(model.embedding_bytes, model.output_bytes or model.embedding_bytes)


def _doubled_heads(model: ModelFacts, division: Division) -> int:
    """Return the bytes that the GPUs together have more, since each keeps a whole key/value head at least."""
    heads, cut = model.kv_heads, division.tensor
    if not heads or model.latent_rank or cut <= heads or not model.parameters:
        return 0
    size = model.tensor_bytes / model.parameters
    row = model.hidden_size * (model.key_length + model.value_length) * division.stage(model.layers)
    return int((cut - heads) * row * size)
