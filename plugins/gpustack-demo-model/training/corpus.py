"""Reads the corpus: what people ask, and what is answered.

Every text in ``corpus/`` was written for this project. A topic is a block of lines:

    [stop]
    = Type `gpustack stop`. It lets requests in flight finish, then ends everything.
    how do I stop it?
    shut the server down

The name, the answer, and then one wording a line. ``offtopic*.txt`` hold one prompt a line that gets the one answer
to everything else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
#: What decides about the weights, besides the corpus: a change of one of these makes the shipped files old.
SCRIPTS = ("corpus.py", "noise.py", "dialogues.py", "tokens.py", "chat_network.py", "train_chat.py")
ENCODER_SCRIPTS = ("corpus.py", "noise.py", "tokens.py", "encoder_network.py", "train_encoder.py")

OFF_TOPIC = "off-topic"
#: Begins like no other answer, so that one token decides between knowing and not knowing.
OFF_TOPIC_ANSWER = (
    "Sorry, that is beyond me: I am only GPUStack's demo model. Deploy a bigger model for it: "
    "`gpustack deploy hf:ORGANISATION/NAME`."
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One answer, and the ways to ask for it."""

    name: str
    answer: str
    wordings: tuple[str, ...]

    @property
    def brief(self) -> str:
        """The answer for those who want a short one: its first sentence."""
        return first_sentence(self.answer)


def first_sentence(text: str) -> str:
    """Return the first sentence.

    >>> first_sentence("Type `gpustack stop`. It ends everything.")
    'Type `gpustack stop`.'
    """
    first = _SENTENCE_END.split(text, maxsplit=1)[0]
    # "No," or "Hello!" alone is no answer.
    return first if len(first) > 12 else text


def topics() -> list[Topic]:
    """Return the topics in the order of their files. Raises ValueError for a corpus that contradicts itself."""
    found: list[Topic] = []
    for path in _files("topics"):
        found.extend(_read(path))
    names = [each.name for each in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"topics that are there twice: {sorted(twice)}")
    return found


def off_topic() -> list[str]:
    """Return the prompts that get :data:`OFF_TOPIC_ANSWER`."""
    return [line for path in _files("offtopic") for line in _lines(path)]


def lines(name: str) -> list[str]:
    """Return the lines of ``corpus/NAME.txt``."""
    return list(_lines(CORPUS / f"{name}.txt"))


def groups(name: str) -> list[list[str]]:
    """Return the lines of ``corpus/NAME.txt``, each split at its semicolons."""
    return [[part.strip() for part in line.split(";")] for line in lines(name)]


def corpus_digest() -> str:
    """Return the digest of every file of the corpus with its name."""
    return _digest(sorted(CORPUS.rglob("*.txt")))


def scripts_digest(names: tuple[str, ...]) -> str:
    """Return the digest of what makes the weights of the corpus."""
    return _digest([HERE / name for name in names])


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        # As the repository has it, wherever it was checked out.
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def _files(kind: str) -> list[Path]:
    return sorted((CORPUS / kind).glob("*.txt"))


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _read(path: Path) -> Iterator[Topic]:
    name, answer, wordings = "", "", []
    for line in [*_lines(path), "[]"]:
        if not (line.startswith("[") and line.endswith("]")):
            if line.startswith("= "):
                answer = line[2:]
            else:
                wordings.append(line)
            continue
        if name:
            if not answer or not wordings:
                raise ValueError(f"{path.name}: topic {name} has no answer or no wordings")
            yield Topic(name=name, answer=answer, wordings=tuple(dict.fromkeys(wordings)))
        name, answer, wordings = line[1:-1], "", []
