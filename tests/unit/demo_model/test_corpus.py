"""The corpus of the demo model: enough wordings, none that means two things, and no question of the examination."""

from __future__ import annotations

import re
from collections import Counter

import corpus
import evaluate
import pytest

TOPICS = corpus.topics()


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip() or text


def test_every_topic_has_its_wordings() -> None:
    assert len(TOPICS) >= 240
    assert not {topic.name: len(topic.wordings) for topic in TOPICS if len(topic.wordings) < 25}


def test_no_wording_stands_for_two_topics() -> None:
    wordings = Counter(plain(each) for topic in TOPICS for each in {plain(each) for each in topic.wordings})
    assert not [text for text, times in wordings.items() if times > 1]


def test_what_is_off_topic_is_on_none() -> None:
    known = {plain(each) for topic in TOPICS for each in topic.wordings}
    prompts = corpus.off_topic()
    assert len(prompts) >= 5000
    assert not [each for each in prompts if plain(each) in known]


def test_answers_are_short_and_each_is_one() -> None:
    answers = [topic.answer for topic in TOPICS]
    assert len(set(answers)) == len(answers)
    assert not [answer for answer in answers if len(answer.split()) > 40]
    assert not [topic.brief for topic in TOPICS if not topic.answer.startswith(topic.brief)]
    assert not [answer for answer in answers if answer.startswith("Sorry")], "one token tells the refusal"


@pytest.mark.parametrize("folder", [evaluate.EXAM, evaluate.PRACTICE])
def test_questions_have_topics_that_exist(folder) -> None:
    names = {topic.name for topic in TOPICS}
    questions = list(evaluate.questions(folder / "on_topic.txt"))
    assert len(questions) >= 120
    assert not [question for question, wanted in questions if not wanted or not set(wanted) <= names]
    assert len(list(evaluate.questions(folder / "off_topic.txt"))) >= 60


def test_no_question_of_the_examination_is_in_the_corpus() -> None:
    known = {plain(each) for topic in TOPICS for each in topic.wordings} | {
        plain(e) for e in corpus.off_topic()
    }
    asked = [
        question
        for name in ("on_topic", "off_topic")
        for question, _ in evaluate.questions(evaluate.EXAM / f"{name}.txt")
    ]
    assert not [question for question in asked if plain(question) in known]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Type `gpustack stop`. It ends all.", "Type `gpustack stop`."),
        ("No, I am not ChatGPT. I am tiny.", "No, I am not ChatGPT."),
        ("Hello! I am the demo model. Ask me.", "Hello! I am the demo model. Ask me."),
        ("See docs/deployment.md for it. More.", "See docs/deployment.md for it."),
        ("One sentence", "One sentence"),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert corpus.first_sentence(text) == first
