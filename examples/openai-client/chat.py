"""Streams one answer: ``python chat.py MODEL QUESTION``."""

from __future__ import annotations

import sys

from openai import OpenAI


def main(model: str, question: str) -> None:
    """Print the answer as it comes, then what it cost."""
    client = OpenAI()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n[{chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens]")


if __name__ == "__main__":
    main(*sys.argv[1:3])
