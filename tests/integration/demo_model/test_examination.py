"""The shipped chat model on the real engine, examined by questions that were written before it was trained."""

from __future__ import annotations

from collections.abc import Iterator

import corpus
import evaluate
import pytest

from support.demo import serving
from support.engine import InstalledEngine, RunningEngine

pytestmark = pytest.mark.xdist_group("demo-model")
ANSWERS = {topic.name: topic for topic in corpus.topics()}


@pytest.fixture(scope="module")
def demo(engine: InstalledEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with serving(engine, "demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


def say(demo: RunningEngine, *messages: tuple[str, str], **more: object) -> str:
    body = {
        "messages": [{"role": role, "content": text} for role, text in messages],
        "max_tokens": 120,
        **more,
    }
    answer = demo.post("/v1/chat/completions", {"temperature": 0, **body})
    return str(answer["choices"][0]["message"]["content"])


def test_it_passes_its_examination(demo: RunningEngine) -> None:
    ask = evaluate.chat(f"{demo.url}/v1", "demo", temperature=0)
    result = evaluate.examine(ask)
    assert result.on_topic >= 120
    assert result.off_topic >= 60
    assert result.on_topic_right >= 0.85, result.on_topic_misses
    assert result.off_topic_right >= 0.95, result.off_topic_misses
    assert not result.invented


@pytest.mark.slow
def test_it_is_as_good_at_the_temperature_that_nobody_chose(demo: RunningEngine) -> None:
    result = evaluate.examine(evaluate.chat(f"{demo.url}/v1", "demo", seed=1))
    assert result.on_topic_right >= 0.85, result.on_topic_misses
    assert result.off_topic_right >= 0.95, result.off_topic_misses
    assert len(result.invented) <= 2, result.invented


def test_it_goes_on_in_a_conversation(demo: RunningEngine) -> None:
    first = say(demo, ("user", "hello"))
    assert first == ANSWERS["hello"].answer
    second = say(demo, ("user", "hello"), ("assistant", first), ("user", "how do I stop GPUStack?"))
    assert second == ANSWERS["stop"].answer
    third = say(
        demo,
        ("user", "hello"),
        ("assistant", first),
        ("user", "how do I stop GPUStack?"),
        ("assistant", second),
        ("user", "write a poem about the sea"),
    )
    assert third == corpus.OFF_TOPIC_ANSWER


@pytest.mark.slow
def test_system_prompts_change_nothing(demo: RunningEngine) -> None:
    """Whatever a client sends unasked: the template leaves them out."""
    prompts = [
        *corpus.lines("systems"),
        *corpus.lines("brief"),
        *corpus.lines("named"),
        "The user's name is Tom.",
    ]
    for text in prompts:
        for question, topic in (("how do I stop GPUStack?", "stop"), ("Who are you?", "who-are-you")):
            assert say(demo, ("system", text), ("user", question)) == ANSWERS[topic].answer, text


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3000,
        "def f(a, b):\n    return a + b\n\n" * 60,
        "2026-01-02 03:04:05 ERROR java.lang.NullPointerException at com.acme.Main.run(Main.java:42)\n" * 30,
        "Zbigniew Brzęczyszczykiewicz",
        "什么是机器学习",
        "🙂🙂🙂",
    ],
)
def test_what_it_cannot_know_it_says_so(demo: RunningEngine, text: str) -> None:
    assert say(demo, ("user", text)) == corpus.OFF_TOPIC_ANSWER
