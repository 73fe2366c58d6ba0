"""The pieces of a streamed chat answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from gpustack.client.watch import lines
from gpustack.kit.errors import GPUStackError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """One piece: text, the model's thinking, and on the last ones why it ended and how many tokens it took."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


async def deltas(chunks: AsyncIterator[bytes]) -> AsyncGenerator[ChatDelta, None]:
    """Read a stream of server-sent events up to ``[DONE]``.

    Raises GPUStackError with the engine's message when the stream carries an error, or ends before its end.
    """
    async for line in lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        yield _delta(data)
    raise GPUStackError("the answer broke off: the engine ended or was stopped; see `gpustack ps`")


def _delta(data: bytes) -> ChatDelta:
    try:
        document: Any = json.loads(data)
    except ValueError as error:
        raise GPUStackError("the engine sent a piece of answer that is not JSON") from error
    if "error" in document:
        inner = document["error"]
        raise GPUStackError(str(inner.get("message", inner) if isinstance(inner, dict) else inner))
    choice: dict[str, Any] = next(iter(document.get("choices") or []), {})
    delta, usage = choice.get("delta") or {}, document.get("usage") or {}
    return ChatDelta(
        text=delta.get("content") or "",
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        finish_reason=choice.get("finish_reason") or "",
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )
