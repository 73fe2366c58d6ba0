"""Examines a served demo model: ``python evaluate.py http://localhost:9080/v1 demo`` (key in ``OPENAI_API_KEY``).

``exam/`` was written before the training, by somebody who had seen the answers and no wording, and was not looked at while
the corpus and the training were changed; ``practice/`` (``--practice``) is what they were changed by. On topic, a question
stands beside the topics whose answers are right; off topic, the model has to say that it is only a demo.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import corpus

EXAM, PRACTICE = corpus.HERE / "exam", corpus.HERE / "practice"
#: Returns the answer to one question.
Ask = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an examination went. Each miss is a question, what was wanted, and what was answered."""

    on_topic: int
    off_topic: int
    on_topic_misses: tuple[tuple[str, str, str], ...]
    off_topic_misses: tuple[tuple[str, str, str], ...]
    #: Answers that stand nowhere in the corpus, in whole or as their first sentence.
    invented: tuple[str, ...] = field(default=())

    @property
    def on_topic_right(self) -> float:
        """The share of questions on topic that got a right answer."""
        return 1 - len(self.on_topic_misses) / self.on_topic

    @property
    def off_topic_right(self) -> float:
        """The share of other prompts that got the answer to everything else."""
        return 1 - len(self.off_topic_misses) / self.off_topic


def examine(ask: Ask, folder: Path = EXAM, at_once: int = 4) -> Result:
    """Put every question of ``folder`` to ``ask``."""
    known = {topic.name: (topic.answer, topic.brief) for topic in corpus.topics()}
    on_topic = list(questions(folder / "on_topic.txt"))
    off_topic = [prompt for prompt, _ in questions(folder / "off_topic.txt")]
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(ask, [question for question, _ in on_topic]))
        refusals = list(pool.map(ask, off_topic))
    right = corpus.OFF_TOPIC_ANSWER
    texts = {text for pair in known.values() for text in pair} | {right, corpus.first_sentence(right)}
    return Result(
        on_topic=len(on_topic),
        off_topic=len(off_topic),
        on_topic_misses=tuple(
            (question, ", ".join(wanted), answer)
            for (question, wanted), answer in zip(on_topic, answers, strict=True)
            if not any(answer in known[name] for name in wanted)
        ),
        off_topic_misses=tuple(
            (prompt, corpus.OFF_TOPIC, answer)
            for prompt, answer in zip(off_topic, refusals, strict=True)
            if answer != right
        ),
        invented=tuple(answer for answer in [*answers, *refusals] if answer not in texts),
    )


def questions(path: Path) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield each question of a file with the topics that answer it; none for a file of other prompts."""
    for line in path.read_text(encoding="utf-8").splitlines():
        question, bar, wanted = line.rpartition(" | ") if path.stem == "on_topic" else (line, "", "")
        if question.strip():
            yield question.strip(), tuple(each.strip() for each in wanted.split(",") if bar)


def chat(url: str, model: str, key: str = "", **more: object) -> Ask:
    """Return what asks an OpenAI-compatible server; ``more`` are fields of the request."""

    def ask(question: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 120,
            **more,
        }
        request = urllib.request.Request(
            f"{url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"]).strip()

    return ask


def main() -> None:
    """Examine and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--practice", action="store_true")
    parser.add_argument("--show-misses", action="store_true")
    options = parser.parse_args()
    ask = chat(options.url, options.model, os.environ.get("OPENAI_API_KEY", ""))
    result = examine(ask, PRACTICE if options.practice else EXAM)
    if options.show_misses:
        for question, wanted, answer in (*result.on_topic_misses, *result.off_topic_misses):
            print(f"{question}\n    wanted {wanted}, got: {answer}")
    print(f"on topic   {result.on_topic_right:6.1%} of {result.on_topic}")
    print(f"off topic  {result.off_topic_right:6.1%} of {result.off_topic}")
    print(f"invented   {len(result.invented)}")


if __name__ == "__main__":
    main()
