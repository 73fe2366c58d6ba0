"""What engines can be asked: an exact list of paths. Nothing else of a client's path ever reaches an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Kinds of models that write text. (Whether a language model also embeds is a matter of the engine's parameters, so the
#: engine tells.)
_WRITERS = frozenset({"llm", "unknown"})
_JUDGES = frozenset({"reranker", "embedding", "unknown"})
_PAINTERS = frozenset({"image", "unknown"})
_SPEAKERS = frozenset({"text_to_speech", "unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing to ask, by the path that engines know it under."""

    path: bytes
    #: Kinds of models that can do it; empty asks any.
    kinds: frozenset[str] = frozenset()
    #: The body is a form, with files in it, and no JSON.
    form: bool = False
    #: Streams tell their usage only when asked for it by ``stream_options``.
    asks_usage: bool = False
    #: Whether it takes tokens, so that they are estimated where the engine tells none.
    metered: bool = True
    #: Asking a second engine after the first may have begun changes nothing and costs little.
    repeatable: bool = False
    #: Errors have the shape of Anthropic's API.
    anthropic: bool = False

    #: Its path is one that we know, and no client's own.
    fixed: bool = True

    #: What records and logs call it.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the name."""
        object.__setattr__(self, "name", self.path.decode("latin-1"))


def _json(path: str, **more: Any) -> Operation:
    return Operation(path=path.encode(), **more)


_ALL = (
    _json("/v1/chat/completions", kinds=_WRITERS, asks_usage=True),
    _json("/v1/completions", kinds=_WRITERS, asks_usage=True),
    _json("/v1/responses", kinds=_WRITERS),
    _json("/v1/messages", kinds=_WRITERS, anthropic=True),
    _json("/v1/messages/count_tokens", metered=False, repeatable=True, anthropic=True),
    _json("/v1/embeddings", repeatable=True),
    _json("/v1/rerank", repeatable=True),
    _json("/v1/score", kinds=_JUDGES, repeatable=True),
    _json("/v1/moderations", repeatable=True),
    _json("/v1/audio/speech", kinds=_SPEAKERS),
    _json("/v1/audio/transcriptions", form=True),
    _json("/v1/audio/translations", form=True),
    _json("/v1/images/generations", kinds=_PAINTERS),
    _json("/v1/images/edits", form=True, kinds=_PAINTERS),
    _json("/v1/images/variations", form=True, kinds=_PAINTERS),
    _json("/tokenize", metered=False, repeatable=True),
    _json("/detokenize", metered=False, repeatable=True),
)
#: By every path that clients may write.
OPERATIONS: dict[bytes, Operation] = {each.path: each for each in _ALL}
OPERATIONS |= {
    b"/v1-openai" + path[3:]: each for path, each in OPERATIONS.items() if path.startswith(b"/v1/")
}
OPERATIONS[b"/v2/rerank"] = OPERATIONS[b"/v1/rerank"]

#: Whatever else an engine offers: ``/model/proxy/NAME/PATH``, or with the name in a header.
PROXY = b"/model/proxy/"
PROXY_HEADER = b"x-gpustack-model"

#: Where everything belongs to models, and what is not known does not exist.
_PREFIXES = (b"/v1/", b"/v1-openai/", PROXY)


def is_inference(path: bytes) -> bool:
    """Tell whether ``path`` is for models, and not for the server."""
    return path.startswith(_PREFIXES) or path in OPERATIONS or path in (b"/v1", b"/v1-openai")


def models_path(path: bytes) -> bytes | None:
    """Return what follows ``/v1/models``: empty for the list, a name for one; None for another path."""
    for prefix in (b"/v1/models", b"/v1-openai/models"):
        if path == prefix:
            return b""
        if path.startswith(prefix + b"/"):
            return path[len(prefix) + 1 :]
    return None
