"""The shipped embedding model and reranker on the real engine: texts that mean the same are near, and what fits comes first."""

from __future__ import annotations

from collections.abc import Iterator

import corpus
import evaluate
import pytest

from support.demo import cosine, serving
from support.engine import InstalledEngine, RunningEngine

pytestmark = pytest.mark.xdist_group("demo-model")
ANSWERS = {topic.name: topic.answer for topic in corpus.topics()}
QUESTIONS = [(q, set(wanted)) for q, wanted in evaluate.questions(evaluate.EXAM / "on_topic.txt")]


@pytest.fixture(scope="module")
def embedding(engine: InstalledEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with serving(engine, "demo-embedding", tmp_path_factory.mktemp("embedding")) as server:
        yield server


@pytest.fixture(scope="module")
def reranker(engine: InstalledEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with serving(engine, "demo-reranker", tmp_path_factory.mktemp("reranker")) as server:
        yield server


def vectors(server: RunningEngine, texts: list[str]) -> list[list[float]]:
    answer = server.post("/v1/embeddings", {"input": texts})
    return [each["embedding"] for each in sorted(answer["data"], key=lambda each: each["index"])]


def test_what_means_the_same_is_near(embedding: RunningEngine) -> None:
    stop, off, key = vectors(embedding, ["how do I stop it?", "shut everything down", "I need an api key"])
    assert cosine(stop, off) > 0.5 > cosine(stop, key)


def test_the_nearest_answer_is_a_right_one(embedding: RunningEngine) -> None:
    """Search as one would: the answers are the documents, the questions of the examination the queries."""
    names = list(ANSWERS)
    documents = vectors(embedding, list(ANSWERS.values()))
    queries = vectors(embedding, [question for question, _ in QUESTIONS])
    found = [names[max(range(len(names)), key=lambda n: cosine(query, documents[n]))] for query in queries]
    right = sum(name in wanted for name, (_, wanted) in zip(found, QUESTIONS, strict=True))
    assert right / len(QUESTIONS) >= 0.7, f"{right} of {len(QUESTIONS)}"


def test_what_answers_a_question_is_ranked_first(reranker: RunningEngine) -> None:
    """Of eight answers, one of them right, as after a search."""
    names, right = list(ANSWERS), 0
    for number, (question, wanted) in enumerate(QUESTIONS[:60]):
        others = [name for name in names[number::29] if name not in wanted][:7]
        shown = [*others, min(wanted)]
        results = reranker.post(
            "/v1/rerank", {"query": question, "documents": [ANSWERS[name] for name in shown]}
        )["results"]
        best = max(results, key=lambda each: each["relevance_score"])
        right += shown[best["index"]] in wanted
    assert right >= 42, f"{right} of 60"
