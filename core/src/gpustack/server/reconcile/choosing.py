"""Which backend serves a model that names none, and why."""

from __future__ import annotations

from collections.abc import Sequence

from gpustack.server.reconcile.questions import Answer, Question

Answered = Sequence[tuple[Question, Answer]]


def in_order(answered: Answered) -> list[tuple[Question, Answer]]:
    """Return the answers for a model that names no backend, those of the backends that are made for it first.

    What a backend serves only by name becomes a refusal. What a question is asked with, GPUs or none, goes before that.
    """
    places = {devices: place for place, devices in enumerate(dict.fromkeys(q.devices for q, _ in answered))}
    found = [(question, _unnamed(question, answer)) for question, answer in answered]
    return sorted(found, key=lambda each: (places[each[0].devices], -each[1].preference.rank))


def _unnamed(question: Question, answer: Answer) -> Answer:
    if answer.claim is None or answer.preference.rank >= 0:
        return answer
    reason = answer.preference.reason or "it is used for models that name it"
    return Answer(refused_by="model", reason=f"{question.backend}: {reason}")


def headline(answered: Answered, backend: str, *, gpus: bool) -> str:
    """Return in a line why ``backend`` was chosen, on GPUs or without; empty when nobody says."""
    for question, answer in answered:
        if question.backend == backend and bool(question.devices) == gpus and answer.claim is not None:
            reason = answer.preference.reason
            return f"{backend}: {reason}" if reason else ""
    return ""


def why(answered: Answered, backend: str, *, gpus: bool) -> list[str]:
    """Return a line on the backend that was chosen, and one on each other: that it could serve too, or why not."""
    told = headline(answered, backend, gpus=gpus)
    lines = [f"chosen {told}" if told else f"chosen {backend}: no other backend is made for it more"]
    others: dict[str, str] = {}
    for question, answer in in_order(answered):
        name = question.backend
        if name == backend:
            continue
        if answer.claim is not None:
            others[name] = f"{name} could serve it too (--backend {name})"
        elif name not in others or (bool(question.devices) == gpus and "could serve" not in others[name]):
            others[name] = f"not {answer.reason}"
    return [*lines, *others.values()]
