"""A whole model in GGUF: one file, or all the parts of a split one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import plural
from gpustack.plugin import Category, ModelFacts
from gpustack.worker.facts.gguf import Header, Items, read_header
from gpustack.worker.facts.gguf_memory import memory_facts
from gpustack.worker.facts.gguf_types import ENCODERS, FILE_TYPES, PAINTERS, SPEAKERS
from gpustack.worker.facts.reader import Opener, clean, open_local, whole
from gpustack.worker.facts.tensors import Sums

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_MAX_PARTS = 1000
_MAX_COMPANIONS = 100
_POOLING_RANK = 4


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a file in a split model, as its name tells it."""

    stem: str
    number: int
    count: int

    def name(self, number: int) -> str:
        """Return the name of another part of the same model."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}.gguf"


def part_of(name: str) -> Part | None:
    """Return the part that a file of this ``name`` is, or None for a model in one file."""
    if (match := _PART.match(name)) is None:
        return None
    return Part(match["stem"], int(match["number"]), int(match["count"]))


def read_gguf(path: Path, opener: Opener = open_local) -> ModelFacts:
    """Return the facts of the GGUF model that ``path`` is, or is a part of.

    Raises InvalidInput for anything but a complete model; OSError passes through.
    """
    headers = [read_header(each, each.stat().st_size, opener) for each in _parts(path)]
    first = headers[0]
    _is_a_model(first)
    split = whole(first.metadata.get("split.count"))
    if split > 1 and split != len(headers):
        raise InvalidInput(
            f"{first.path} is one of {split} parts of a model but is not named like one; "
            "give the parts their original names (…-00001-of-0000N.gguf)"
        )
    return _facts(headers)


def _parts(path: Path) -> list[Path]:
    part = part_of(path.name)
    if part is None:
        return [path]
    if not 0 < part.number <= part.count <= _MAX_PARTS:
        raise InvalidInput(f"{path} is named as part {part.number} of {part.count}, which cannot be")
    paths = [path.with_name(part.name(number)) for number in range(1, part.count + 1)]
    if path not in paths:
        # The name matched in another letter case: its siblings are named the same way as itself.
        paths = [
            path.with_name(
                f"{path.name[: -len('00001-of-00001.gguf')]}{n:05d}{path.name[-len('-of-00001.gguf') :]}"
            )
            for n in range(1, part.count + 1)
        ]
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise InvalidInput(
            f"{plural(len(missing), 'part')} of {part.count} missing in {path.parent}: {shown}"
        )
    return paths


def _is_a_model(header: Header) -> None:
    kind = header.metadata.get("general.type")
    if kind == "adapter":
        raise InvalidInput(f"{header.path} is a LoRA adapter, not a model; name the model it adapts")
    if kind == "mmproj" or header.architecture == "clip":
        raise InvalidInput(f"{header.path} is the vision part (mmproj) of a model; name the model itself")
    if kind == "imatrix" or header.architecture == "imatrix":
        raise InvalidInput(f"{header.path} is an importance matrix, not a model")
    if not header.architecture:
        raise InvalidInput(
            f"{header.path} does not name its architecture; it is not a model that engines load"
        )
    if not header.tensors and whole(header.metadata.get("split.count")) <= 1:
        raise InvalidInput(
            f"{header.path} holds no weights, only a vocabulary; name the file with the weights"
        )


def _facts(headers: list[Header]) -> ModelFacts:
    first = headers[0]
    heads = _count(first.own("attention.head_count"), per_layer=max)
    hidden = whole(first.own("embedding_length"))
    kv_heads = _count(first.own("attention.head_count_kv"), per_layer=_mean) or heads
    head_size = hidden // heads if heads else 0
    tokens = first.metadata.get("tokenizer.ggml.tokens")
    layers = whole(first.own("block_count"))
    sums = Sums()
    for header in headers:
        sums.join(header.sums)
    # Latent attention has other lengths than those that the header gives for each head.
    known: dict[str, Any] = {
        "kv_heads": kv_heads,
        "key_length": whole(first.own("attention.key_length")) or head_size,
        "value_length": whole(first.own("attention.value_length")) or head_size,
        **memory_facts(first, layers),
    }
    return ModelFacts(
        format="gguf",
        path=str(first.path),
        weight_bytes=sum(header.size for header in headers),
        architecture=clean(first.architecture),
        name=clean(first.metadata.get("general.name")),
        quantization=_quantization(headers),
        parameters=whole(sum(header.elements for header in headers)),
        context_length=whole(first.own("context_length")),
        layers=layers,
        hidden_size=hidden,
        attention_heads=heads,
        vocabulary=tokens.length if isinstance(tokens, Items) else whole(first.own("vocab_size")),
        categories=(_category(headers),),
        has_chat_template=_has_chat_template(first),
        shard_bytes=tuple(header.size for header in headers),
        companions=_companions(headers),
        **sums.facts(),
        **known,
    )


def _companions(headers: list[Header]) -> tuple[tuple[str, int], ...]:
    """Return the other GGUF files of the folder, which the user may name in parameters."""
    own = {header.path.name for header in headers}
    others = (each for each in sorted(headers[0].path.parent.glob("*.gguf")) if each.name not in own)
    try:
        return tuple((each.name, each.stat().st_size) for each in islice(others, _MAX_COMPANIONS))
    except OSError:
        # One that goes away meanwhile, or may not be looked at, is nobody's companion.
        return ()


def _count(value: Any, *, per_layer: Any) -> int:
    """Return a number that may be given once or for each layer; ``per_layer`` makes one of many."""
    if isinstance(value, Items):
        numbers = [whole(number) for number in value.numbers]
        return int(per_layer(numbers)) if numbers else 0
    return whole(value)


def _mean(numbers: list[int]) -> int:
    """Return the mean, rounded up, so that layers times heads is never less than what is needed."""
    return -(-sum(numbers) // len(numbers))


def _quantization(headers: list[Header]) -> str:
    kind = headers[0].metadata.get("general.file_type")
    if isinstance(kind, int) and kind in FILE_TYPES:
        return FILE_TYPES[kind]
    sizes: Counter[str] = Counter()
    for header in headers:
        sizes.update(header.sums.by_type)
    return max(sizes, key=sizes.__getitem__, default="")


def _category(headers: list[Header]) -> Category:
    architecture = headers[0].architecture
    pooling = headers[0].own("pooling_type")
    if architecture in PAINTERS:
        return "image"
    if architecture in SPEAKERS:
        return "text_to_speech"
    if pooling == _POOLING_RANK:
        return "reranker"
    if architecture in ENCODERS:
        ranks = any(name.startswith("cls.") for header in headers for name in header.tensor_names)
        return "reranker" if ranks and not pooling else "embedding"
    return "embedding" if whole(pooling) else "llm"


def _has_chat_template(header: Header) -> bool:
    template = header.metadata.get("tokenizer.chat_template")
    return bool(template) or "tokenizer.chat_templates" in header.metadata
