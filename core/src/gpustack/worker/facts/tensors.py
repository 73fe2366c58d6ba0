"""Bytes of weights by where they belong in the model, summed up tensor by tensor from their names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: ``blk.3.ffn_up.weight``, ``model.layers.3.mlp…``, ``transformer.h.3.…``; a picture's encoder has layers of its own.
_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|h|layer|blocks)\.(\d{1,4})\.")
_EXPERT = re.compile(r"_exps\.|\.experts\.")
_EMBEDDING = re.compile(
    r"^token_embd\.weight|(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$"
)
_OUTPUT = re.compile(r"^output\.weight|(?:^|\.)(?:lm_head|embed_out)\.")
_VISION = re.compile(
    r"^(?:model\.|thinker\.)*(?:visual|vision\w*|image_\w+|audio\w*|multi_modal\w*|mm_\w+|mlp1|v|mm|a)\."
)
_MOST_LAYERS = 4096


@dataclass(slots=True)
class Sums:
    """Bytes of all tensors seen so far. ``complete`` is False when a tensor's size is not known."""

    total: int = 0
    by_type: Counter[str] = field(default_factory=Counter)
    by_layer: Counter[int] = field(default_factory=Counter)
    embedding: int = 0
    output: int = 0
    experts: int = 0
    vision: int = 0
    complete: bool = True

    def add(self, name: str, kind: str, length: int) -> None:
        """Count one tensor of ``length`` bytes."""
        self.total += length
        self.by_type[kind] += length
        if _VISION.search(name):
            self.vision += length
            return
        if (layer := _LAYER.search(name)) is not None and int(layer[1]) < _MOST_LAYERS:
            self.by_layer[int(layer[1])] += length
            if _EXPERT.search(name):
                self.experts += length
        elif _EMBEDDING.search(name):
            self.embedding += length
        elif _OUTPUT.search(name):
            self.output += length

    def join(self, other: Sums) -> None:
        """Add what another file holds."""
        self.total += other.total
        self.by_type += other.by_type
        self.by_layer += other.by_layer
        self.embedding += other.embedding
        self.output += other.output
        self.experts += other.experts
        self.vision += other.vision
        self.complete &= other.complete

    def facts(self) -> dict[str, Any]:
        """Return the fields of ModelFacts that follow; none when a size is not known."""
        if not self.complete:
            return {}
        layers = max(self.by_layer, default=-1) + 1
        return {
            "tensor_bytes": self.total,
            "bytes_by_type": tuple(self.by_type.most_common()),
            "layer_bytes": tuple(self.by_layer[number] for number in range(layers)),
            "embedding_bytes": self.embedding,
            "output_bytes": self.output,
            "expert_bytes": self.experts,
            "vision_bytes": self.vision,
        }
