"""Makes of a wording what people really type: hurried, misspelt, polite, cut short."""

from __future__ import annotations

import re
from random import Random

import corpus

#: Words that carry little: people leave them out when they hurry.
_SMALL = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "be",
        "do",
        "does",
        "did",
        "i",
        "it",
        "its",
        "to",
        "of",
        "for",
        "in",
        "on",
        "at",
        "my",
        "me",
        "we",
        "our",
        "you",
        "your",
        "that",
        "this",
        "there",
        "please",
        "can",
        "could",
        "would",
        "should",
        "how",
        "what",
        "with",
        "and",
        "so",
        "just",
    ]
)
_BEFORE = (
    "hi, ", "hello, ", "hey ", "hi there, ", "please ", "pls ", "ok, ", "ok so ", "so ", "and ", "quick question: ",
    "question: ", "sorry, ", "good morning, ", "another question: ", "um ", "well, ", "now, ", "one more thing: ",
    "help: ", "can you tell me ", "could you tell me ", "i want to know ", "tell me ", "do you know ", "I wonder ",
    "i am new here, ", "stupid question, ", "as a beginner: ", "sir ", "hey bot, ", "excuse me, ", "gpustack: ",
)  # fmt: skip
_AFTER = (
    " please", " pls", " thanks", " thank you", " thx", "?", "??", "???", " ?", "!", "...", " :)", " asap",
    " please help", " help", " any idea?", " in gpustack", " with gpustack", " here", " exactly", " now", " again",
    " for me", " step by step", " on linux", " on my machine",
)  # fmt: skip
#: Said with these, a question wants the first sentence only.
_BRIEFLY = (
    " briefly", " in short", ", short answer", " in one sentence", ", keep it short", " (short answer please)",
    ", be brief", " in a few words", " tl;dr", ", one line only",
)  # fmt: skip
_BRIEFLY_BEFORE = (
    "briefly: ",
    "in one sentence: ",
    "short answer please: ",
    "in short, ",
    "be brief: ",
    "tl;dr: ",
)
_KEYS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]{4,}")


class Noise:
    """Varies wordings by a seeded generator: the same calls in the same order give the same texts."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._alike: dict[str, list[str]] = {}
        for group in corpus.groups("synonyms"):
            for phrase in group:
                self._alike.setdefault(phrase.lower(), []).extend(each for each in group if each != phrase)
        phrases = sorted(self._alike, key=len, reverse=True)
        self._phrase = re.compile(
            r"(?<![\w-])(" + "|".join(map(re.escape, phrases)) + r")(?![\w-])", re.IGNORECASE
        )

    def vary(self, text: str, *, synonyms: bool = True) -> str:
        """Return ``text`` as somebody else might type it; with probability one third nearly as it is."""
        chance = self._random.random
        if synonyms and chance() < 0.35:
            text = self._replace(text)
        kind = chance()
        if kind < 0.07:
            text = self._key_words(text)
        elif kind < 0.22:
            text = self._without_small(text)
        if chance() < 0.14:
            text = self._random.choice(_BEFORE) + _uncapitalised(text)
        if chance() < 0.12:
            text = text.rstrip("?.! ") + self._random.choice(_AFTER)
        kind = chance()
        if kind < 0.35:
            text = text.lower()
        elif kind < 0.37:
            text = text.upper()
        elif kind < 0.45:
            text = text[:1].upper() + text[1:]
        kind = chance()
        if kind < 0.3:
            text = text.rstrip("?.! ")
        elif kind < 0.36:
            text = text.rstrip("?.! ") + "?"
        while chance() < 0.22:
            text = self._typo(text)
        return text.strip() or "?"

    def briefly(self, text: str) -> str:
        """Return the question as one that wants a short answer."""
        if self._random.random() < 0.3:
            return self._random.choice(_BRIEFLY_BEFORE) + _uncapitalised(text)
        return text.rstrip("?.! ") + self._random.choice(_BRIEFLY)

    def _replace(self, text: str) -> str:
        """Say one or two things in other words."""
        matches = list(self._phrase.finditer(text))
        self._random.shuffle(matches)
        for match in sorted(matches[: self._random.choice((1, 1, 2))], key=lambda each: -each.start()):
            other = self._random.choice(self._alike[match[0].lower()])
            text = text[: match.start()] + other + text[match.end() :]
        return text

    def _key_words(self, text: str) -> str:
        words = [word for word in text.rstrip("?.!").split() if word.lower().strip(",") not in _SMALL]
        return " ".join(words) if len(words) >= 2 else text

    def _without_small(self, text: str) -> str:
        words = text.split()
        small = [place for place, word in enumerate(words) if word.lower() in _SMALL]
        if len(words) < 4 or not small:
            return text
        dropped = set(self._random.sample(small, min(len(small), self._random.choice((1, 1, 2)))))
        return " ".join(word for place, word in enumerate(words) if place not in dropped)

    def _typo(self, text: str) -> str:
        """Misspell one longer word."""
        words = list(_WORD.finditer(text))
        if not words:
            return text
        word = self._random.choice(words)
        place, kind = self._random.randrange(word.start() + 1, word.end()), self._random.random()
        letter = text[place]
        if kind < 0.3:
            return text[:place] + text[place + 1 :]
        if kind < 0.5:
            return text[:place] + letter + text[place:]
        if kind < 0.8 and place + 1 < word.end():
            return text[:place] + text[place + 1] + letter + text[place + 2 :]
        return text[:place] + self._random.choice(_KEYS.get(letter.lower(), "e")) + text[place + 1 :]


def _uncapitalised(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
