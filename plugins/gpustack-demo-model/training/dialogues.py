"""Makes training dialogues of topics and prompts, in the chat format of the shipped model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import corpus
import tokens
from noise import Noise

#: No label: what the user and the system say is read, not learnt to be said.
SILENT = -100
#: The longest dialogue in tokens; long pastes take most of it.
LONGEST = 1024

_WHO = frozenset({"who-are-you", "are-you-chatgpt", "are-you-human"})
_PASTED_WORDS = [
    "return",
    "value",
    "error",
    "line",
    "import",
    "data",
    "self",
    "index",
    "file",
    "list",
    "user",
    "name",
    "time",
    "path",
    "config",
    "test",
    "result",
    "item",
    "key",
    "node",
    "request",
    "response",
    "status",
    "code",
    "server",
    "client",
    "false",
    "true",
    "none",
    "null",
    "print",
    "import",
    "class",
    "def",
    "function",
    "const",
    "let",
    "var",
    "for",
    "while",
    "if",
    "else",
    "try",
    "except",
    "async",
    "await",
    "select",
    "from",
    "where",
    "insert",
    "update",
    "table",
    "join",
    "order",
    "group",
    "limit",
    "the",
    "and",
    "dear",
    "team",
    "regards",
    "meeting",
    "budget",
    "project",
    "report",
    "customer",
    "invoice",
    "delivery",
    "week",
    "month",
    "total",
    "price",
    "amount",
    "we",
    "they",
    "will",
    "have",
    "been",
    "because",
    "however",
    "therefore",
    "according",
    "research",
    "study",
    "people",
    "world",
    "government",
    "market",
    "company",
    "INFO",
    "WARN",
    "DEBUG",
    "ERROR",
    "trace",
    "stack",
    "thread",
    "main",
    "java",
    "lang",
    "exception",
    "null",
    "pointer",
    "at",
    "org",
    "com",
    "net",
    "www",
    "html",
    "div",
    "span",
]
_PASTED_MARKS = (
    "\n",
    "\n",
    "; ",
    ": ",
    ", ",
    ". ",
    "() ",
    " = ",
    " {",
    "} ",
    '"',
    "' ",
    " - ",
    "/",
    "_",
    "\n    ",
    "\t",
    " | ",
)


@dataclass(slots=True)
class Sample:
    """One dialogue: its tokens, the labels (SILENT where nothing is learnt), and what is asked where."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    #: Of each question: where its first token is, where the last before its answer is, and the number of its topic.
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def put(self, ids: Sequence[int], *, learn: bool) -> None:
        """Append ``ids``."""
        self.ids.extend(ids)
        self.labels.extend(ids if learn else [SILENT] * len(ids))


class Dialogues:
    """An endless source of samples, the same for the same seed."""

    #: Share of questions that are off topic.
    OFF_TOPIC = 0.36

    def __init__(
        self, topics: Sequence[corpus.Topic], off_topic: Sequence[str], pieces: tokens.Pieces, random: Random
    ) -> None:
        self._topics = topics
        self._off_topic = off_topic
        self._pieces = pieces
        self._random = random
        self._noise = Noise(random)
        self._systems, self._brief, self._named = (
            corpus.lines("systems"),
            corpus.lines("brief"),
            corpus.lines("named"),
        )
        self._names = [name for group in corpus.groups("names") for name in group]
        self._who = [topic for topic in topics if topic.name in _WHO]
        self._marks = {role: [_START, *pieces.whole(f"{role}\n")] for role in ("system", "user", "assistant")}
        self._end, self._line = _END, pieces.whole("\n")
        #: Share of dialogues of one turn, and of those that are cut short after the first words of an answer.
        self.single, self.cut = 1.0, 0.95

    @property
    def classes(self) -> int:
        """Topics, and one more for everything else."""
        return len(self._topics) + 1

    def sample(self) -> Sample:
        """Return the next dialogue."""
        chance = self._random.random
        sample = Sample()
        brief, name = False, ""
        if chance() < 0.18:
            kind = chance()
            if kind < 0.3:
                brief = True
                self._say(sample, "system", self._random.choice(self._brief))
            elif kind < 0.55:
                name = self._name()
                self._say(sample, "system", self._random.choice(self._named).replace("NAME", name))
            else:
                self._say(sample, "system", self._random.choice(self._systems))
        turns = 1 if chance() < self.single else self._random.choice((2, 2, 3, 3, 4, 6))
        cut = chance() < self.cut
        for turn in range(turns):
            last = turn == turns - 1
            self._turn(sample, brief=brief, name=name, cut=cut and last)
            if len(sample.ids) > LONGEST:
                break
        return sample

    def _turn(self, sample: Sample, *, brief: bool, name: str, cut: bool) -> None:
        """Add one question with its answer."""
        chance = self._random.random
        if name and chance() < 0.4:
            self._ask_named(sample, self._random.choice(self._who), name)
        elif chance() < self.OFF_TOPIC:
            begin = self._say(sample, "user", self._unknown(), cut=True)
            self._answer(sample, begin, len(self._topics), corpus.OFF_TOPIC_ANSWER, cut=cut)
        else:
            topic = self._random.choice(self._topics)
            question = self._varied(topic)
            if name and topic.name in _WHO:
                self._ask_named(sample, topic, name)
            elif not brief and chance() < 0.06:
                self._ask(sample, topic, self._noise.briefly(question), topic.brief, cut=cut)
            else:
                self._ask(
                    sample, topic, question, topic.brief if brief else topic.answer, cut=cut and not brief
                )

    def _ask_named(self, sample: Sample, topic: corpus.Topic, name: str) -> None:
        self._ask(sample, topic, self._varied(topic), as_named(topic, name), cut=False)

    def _varied(self, topic: corpus.Topic) -> str:
        return self._noise.vary(self._random.choice(topic.wordings))

    def _ask(self, sample: Sample, topic: corpus.Topic, question: str, answer: str, *, cut: bool) -> None:
        begin = self._say(sample, "user", question, cut=True)
        self._answer(sample, begin, self._topics.index(topic), answer, cut=cut)

    def _say(self, sample: Sample, role: str, text: str, *, cut: bool = False) -> int:
        """Add what somebody says; return where it begins."""
        begin = len(sample.ids)
        words = self._pieces.cut(text) if cut else self._pieces.whole(text)
        sample.put([*self._marks[role], *words[:LONGEST], self._end, *self._line], learn=False)
        return begin

    def _answer(self, sample: Sample, begin: int, number: int, answer: str, *, cut: bool) -> None:
        sample.put(self._marks["assistant"], learn=False)
        sample.asked.append((begin, len(sample.ids) - 1, number))
        words = [*self._pieces.whole(answer), self._end]
        # What comes after the first words of an answer is known by heart soon; which answer it is, is the hard part.
        sample.put(words[: self._random.randint(3, 9)] if cut else words, learn=True)
        if not cut:
            sample.put(self._line, learn=False)

    def _unknown(self) -> str:
        """Return a prompt that no topic answers."""
        kind = self._random.random()
        if kind < 0.05:
            return self._pasted()
        text = self._noise.vary(self._random.choice(self._off_topic), synonyms=False)
        if kind < 0.08:
            text = f"{text}\n{self._pasted()}"
        return text

    def _pasted(self) -> str:
        """Return what looks like pasted code, logs or prose; now and then very long, or the same over and over."""
        random = self._random
        words: list[str] = []
        for _ in range(random.randint(60, 300) if random.random() < 0.1 else random.randint(8, 60)):
            words.append(
                str(random.randrange(10_000)) if random.random() < 0.1 else random.choice(_PASTED_WORDS)
            )
            words.append(random.choice(_PASTED_MARKS) if random.random() < 0.3 else " ")
        text = "".join(words).strip()
        if random.random() < 0.1:
            piece = text[: random.choice((1, 3, 40, 90))]
            text = piece * random.randint(3, max(4, 1200 // len(piece)))
        return text

    def _name(self) -> str:
        """Return a name, half of the time one that nobody has: it has to be copied, not known."""
        random = self._random
        if random.random() < 0.5:
            return random.choice(self._names)
        syllables = (
            random.choice("bcdfghjklmnprstvwz") + random.choice("aeiou")
            for _ in range(random.choice((2, 2, 3)))
        )
        return "".join(syllables).capitalize() + random.choice(("", "", "n", "x", "bot", "-2", "r"))


def as_named(topic: corpus.Topic, name: str) -> str:
    """Return the answer of one whom the system prompt has given a name."""
    return {
        "who-are-you": f"I am {name}. Behind the name is the demo model of GPUStack, a tiny language model.",
        "are-you-chatgpt": f"No, I am {name}, and behind the name is the tiny demo model of GPUStack.",
        "are-you-human": f"No, I am {name}, a computer program: a very small language model.",
    }[topic.name]


_START, _END = (tokens.CHAT_SPECIAL.index(each) for each in (tokens.IM_START, tokens.IM_END))
