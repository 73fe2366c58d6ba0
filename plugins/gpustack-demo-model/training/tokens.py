"""The tokenizers, trained on the corpus: byte-level BPE for the chat model, word pieces for the encoders."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_SPECIAL = (END_OF_TEXT, IM_START, IM_END)
ENCODER_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_chat_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Return a tokenizer of ``size`` tokens that reads any text: bytes are its alphabet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(CHAT_SPECIAL), show_progress=False, initial_alphabet=alphabet
        ),
    )
    return tokenizer


def train_encoder_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Return an uncased word-piece tokenizer of ``size`` tokens, as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(ENCODER_SPECIAL), show_progress=False),
    )
    return tokenizer


class Pieces:
    """Encodes with a tokenizer; now and then cuts words where the tokenizer would not.

    Whoever misspells a word cuts it into other pieces. A model that has seen its words cut in many ways knows more of them
    again. (The library's own dropout takes no seed.)
    """

    def __init__(self, tokenizer: Tokenizer, random: Random) -> None:
        self._tokenizer = tokenizer
        self._random = random
        self._known: dict[str, list[int]] = {}

    def whole(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        if (known := self._known.get(text)) is None:
            if len(self._known) > 100_000:
                self._known.clear()
            known = self._known[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return known

    def cut(self, text: str, chance: float = 0.25) -> list[int]:
        """Return the tokens of ``text``, with probability ``chance`` those of the text cut at random places."""
        if len(text) < 2 or self._random.random() >= chance:
            return self.whole(text)
        count = min(len(text) - 1, self._random.randint(1, 1 + len(text) // 10))
        places = [0, *sorted(self._random.sample(range(1, len(text)), count)), len(text)]
        return [
            token
            for start, end in pairwise(places)
            for token in self._tokenizer.encode(text[start:end], add_special_tokens=False).ids
        ]
