"""What is loaded besides the model: projectors, adapters, draft models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from gpustack.plugin.values import ModelFacts

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One more file that the user's parameters name."""

    kind: Literal["projector", "adapter", "draft"]
    path: str


def extra_bytes(model: ModelFacts, extras: Iterable[Extra]) -> int:
    """Return the bytes of weights in ``extras``.

    Files beside the model are known by size. Of one elsewhere only the name is, so a usual size is counted: its
    measured peak corrects that at the next start.
    """
    known = dict(model.companions)
    return sum(known.get(PurePath(each.path).name) or _usual(model, each) for each in extras)


def _usual(model: ModelFacts, extra: Extra) -> int:
    match extra.kind:
        case "projector":
            # Encoders of 400 to 700 million parameters in half precision are the rule.
            return 1400 * _MIB
        case "adapter":
            # Rank 16 at all matrices is about a hundredth of the model.
            return max(32 * _MIB, model.weight_bytes // 64)
        case "draft":
            # Drafts have about a tenth of the parameters, often with the same vocabulary.
            return model.weight_bytes // 8
