"""One decision with what had changed in the fleet since the one before it, and the text that it is kept as."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpustack.scheduling.plan import Packing, Placed, Refused
from gpustack.scheduling.preempt import Preemption
from gpustack.scheduling.records.codec import BadRecord, Document, decode, encode
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Holding, Worker

Answer = Placed | Refused | Preemption | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A decision, and how the fleet came from what it was at the decision before to what it was at this one."""

    #: Seconds since 1970 by the clock of the server.
    at: float
    request: Request
    #: As :func:`verdict` gives it.
    verdict: Mapping[str, Any]
    #: Workers that came or changed; all of them when ``whole``.
    workers: tuple[Worker, ...] = ()
    #: Workers that went, by id.
    gone: tuple[int, ...] = ()
    #: What instances hold that hold something else than before; empty when nothing. All of them when ``whole``.
    held: Mapping[int, tuple[Holding, ...]] = field(default_factory=dict)
    #: Nothing before this entry is needed to know the fleet.
    whole: bool = False
    packing: Packing = Packing.WHOLE

    @property
    def preempts(self) -> bool:
        """Tell whether it was asked who is to leave for the request, which fitted nowhere."""
        return "preempted" in self.verdict

    @property
    def placed(self) -> Placed | None:
        """Return where the instance went; None when it was refused, or others have to leave before."""
        document = self.verdict.get("placed")
        return None if document is None else decode(Placed, document)

    def write(self) -> str:
        """Return it as one line of JSON, without the line's end."""
        document: dict[str, Any] = {
            "at": round(self.at, 3),
            "request": encode(self.request),
            "verdict": self.verdict,
        }
        if self.workers:
            document["workers"] = [encode(each) for each in self.workers]
        if self.gone:
            document["gone"] = self.gone
        if self.held:
            document["held"] = {str(key): [encode(each) for each in held] for key, held in self.held.items()}
        if self.whole:
            document["whole"] = True
        if self.packing is not Packing.WHOLE:
            document["packing"] = self.packing.value
        return _dumps(document)

    @classmethod
    def read(cls, line: str) -> Entry:
        """Return what :meth:`write` has written. Raises BadRecord, with what is wrong, for anything else."""
        try:
            document = json.loads(line)
        except ValueError as error:
            raise BadRecord(f"this is no JSON: {error}") from error
        if not isinstance(document, dict):
            raise BadRecord("a decision is an object")
        if missing := [name for name in ("at", "request", "verdict") if name not in document]:
            raise BadRecord(f"a decision has {missing[0]!r}, this has not")
        try:
            return cls._of(document)
        except (TypeError, ValueError, AttributeError) as error:
            raise BadRecord(f"no decision: {error}") from error

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Entry:
        held = document.get("held", {})
        return cls(
            at=float(document["at"]),
            request=decode(Request, document["request"]),
            verdict=_as_now(document["verdict"]),
            workers=tuple(decode(Worker, each) for each in document.get("workers", ())),
            gone=tuple(int(each) for each in document.get("gone", ())),
            held={int(key): tuple(decode(Holding, each) for each in held[key]) for key in held},
            whole=bool(document.get("whole", False)),
            packing=Packing(document.get("packing", Packing.WHOLE)),
        )


def verdict(answer: Answer) -> Document:
    """Return all of an answer that a replay must give again, as it comes out of JSON.

    None is that nobody's leaving helps. Of a refusal it is the counts by filter and the workers it names with the filter that each failed; what was missing
    on each follows from the fleet.
    """
    return outline(answer, encode)


def outline(answer: Answer, of_placed: Callable[[Placed], Document]) -> Document:
    """Return what :func:`verdict` does, with each placement as ``of_placed`` gives it."""
    if isinstance(answer, Placed):
        return {"placed": of_placed(answer)}
    if answer is None:
        return {"preempted": None}
    if isinstance(answer, Preemption):
        return {"preempted": {"placed": of_placed(answer.placed), "victims": list(answer.victims)}}
    return {
        "refused": {
            "workers": answer.workers,
            "steps": [[each.name, each.matched, each.asked] for each in answer.steps],
            "short": answer.short,
            "too_large": answer.too_large,
            "named": [[each.worker.id, each.failed] for each in answer.named],
        }
    }


def _as_now(document: Any) -> dict[str, Any]:
    """Return a recorded verdict as :func:`verdict` gives it now: without the fields that have their default."""
    if (placed := document.get("placed")) is not None:
        return {"placed": encode(decode(Placed, placed))}
    if preempted := document.get("preempted"):
        placed = encode(decode(Placed, preempted["placed"]))
        return {"preempted": {"placed": placed, "victims": preempted["victims"]}}
    return dict(document)


_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode
