"""Trains the embedding model and, from its weights, the reranker: ``python train_encoder.py OUT``.

Writes ``OUT/embedding.safetensors``, ``OUT/reranker.safetensors``, tokenizer and report. The same machine, thread count and
seed give the same bytes. Two cores need about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

import corpus
import torch
from encoder_network import EncoderNetwork, Shape
from noise import Noise
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokens import ENCODER_SPECIAL, Pieces, train_encoder_tokenizer
from torch import Tensor, nn
from torch.nn import functional

SEED = 11
STEPS, RERANK_STEPS = 900, 500
#: Pairs of texts of one topic in a batch, each the others' counter-example.
PAIRS = 128
#: Questions in a batch of the reranker, and candidates for each: the right one and wrong ones.
QUESTIONS, CANDIDATES = 24, 6
RATE, RERANK_RATE = 2e-3, 6e-4
DECAY, DROPOUT = 0.05, 0.1
VOCABULARY = 2048
#: Divides cosines before they are compared.
TEMPERATURE = 0.06
LONGEST = 96
_CLS, _SEP = ENCODER_SPECIAL.index("[CLS]"), ENCODER_SPECIAL.index("[SEP]")


class Texts:
    """Questions and what belongs together with them."""

    def __init__(
        self, tokenizer: Tokenizer, topics: Sequence[corpus.Topic], off_topic: Sequence[str], random: Random
    ) -> None:
        self.topics = topics
        self._off_topic = off_topic
        self._random = random
        self._noise = Noise(random)
        self._pieces = Pieces(tokenizer, random)

    def question(self, topic: corpus.Topic) -> list[int]:
        """Return a wording of the topic, varied, as tokens."""
        return self._pieces.cut(self._noise.vary(self._random.choice(topic.wordings)), 0.15)[:LONGEST]

    def partner(self, topic: corpus.Topic) -> list[int]:
        """Return another text of the topic: its answer, or a part of it, or another wording."""
        kind = self._random.random()
        if kind < 0.3:
            return self._pieces.whole(topic.answer)[:LONGEST]
        if kind < 0.4:
            return self._pieces.whole(topic.brief)[:LONGEST]
        return self.question(topic)

    def answer(self, topic: corpus.Topic) -> list[int]:
        """Return the topic's answer."""
        return self._pieces.whole(topic.answer)[:LONGEST]

    def twice(self) -> tuple[list[int], list[int]]:
        """Return one off-topic prompt, varied in two ways."""
        text = self._random.choice(self._off_topic)
        one, other = (self._noise.vary(text, synonyms=False) for _ in range(2))
        return self._pieces.cut(one, 0.15)[:LONGEST], self._pieces.cut(other, 0.15)[:LONGEST]


def main() -> None:
    """Train and write."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    topics, off_topic = corpus.topics(), corpus.off_topic()
    tokenizer = train_encoder_tokenizer(_spoken(topics, off_topic), VOCABULARY)
    random = Random(SEED)
    texts = Texts(tokenizer, topics, off_topic, random)
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    network = EncoderNetwork(shape, DROPOUT)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out / "tokenizer.json"))
    began = time.monotonic()
    _train(network, _embedding_loss(network, texts, random), options.steps or STEPS, RATE)
    _write(options.out / "embedding.safetensors", network, head=False)
    _train(network, _reranking_loss(network, texts, random), options.steps or RERANK_STEPS, RERANK_RATE)
    _write(options.out / "reranker.safetensors", network, head=True)
    report = {
        "shape": asdict(shape),
        "seed": SEED,
        "minutes": (time.monotonic() - began) / 60,
        "corpus": corpus.corpus_digest(),
        "scripts": corpus.scripts_digest(corpus.ENCODER_SCRIPTS),
    }
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=0, help="of each training; for a try")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _spoken(topics: Sequence[corpus.Topic], off_topic: Sequence[str]) -> Iterator[str]:
    for topic in topics:
        yield from [topic.answer] * 5
        yield from topic.wordings
    yield from off_topic


def _train(network: EncoderNetwork, losses: Iterator[tuple[Tensor, float]], steps: int, rate: float) -> None:
    network.train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=DECAY, fused=True
    )
    began, said, right = time.monotonic(), 0.0, 0.0
    for step in range(1, steps + 1):
        share = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 100) * share
        loss, hit = next(losses)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        weight = 0.02 if step > 1 else 1.0
        said += (float(loss.detach()) - said) * weight
        right += (hit - right) * weight
        if step % 100 == 0:
            print(
                f"step {step} loss {said:.4f} right {right:.4f} {time.monotonic() - began:.0f} s", flush=True
            )


def _embedding_loss(network: EncoderNetwork, texts: Texts, random: Random) -> Iterator[tuple[Tensor, float]]:
    """Texts of one topic are to be nearer to each other than to all others of the batch."""
    while True:
        chosen = random.sample(range(len(texts.topics)), PAIRS * 3 // 4)
        pairs = [(texts.question(texts.topics[each]), texts.partner(texts.topics[each])) for each in chosen]
        pairs += [texts.twice() for _ in range(PAIRS - len(pairs))]
        with torch.autocast("cpu", torch.bfloat16):
            one = network.embed(*_padded([_single(left) for left, _ in pairs]))
            other = network.embed(*_padded([_single(right) for _, right in pairs]))
        likeness = one @ other.T / TEMPERATURE
        aim = torch.arange(len(pairs))
        loss = functional.cross_entropy(likeness, aim) + functional.cross_entropy(likeness.T, aim)
        yield loss / 2, float((likeness.argmax(-1) == aim).float().mean())


def _reranking_loss(network: EncoderNetwork, texts: Texts, random: Random) -> Iterator[tuple[Tensor, float]]:
    """The text that answers a question is to score higher than others; half of the others are near misses."""
    near = _neighbours(network, texts)
    while True:
        rows: list[list[int]] = []
        for _ in range(QUESTIONS):
            number = random.randrange(len(texts.topics))
            topic = texts.topics[number]
            wrong = random.sample(near[number], CANDIDATES // 2)
            while len(wrong) < CANDIDATES - 1:
                if (other := random.randrange(len(texts.topics))) not in (*wrong, number):
                    wrong.append(other)
            question = texts.question(topic)
            likely: Callable[[corpus.Topic], list[int]] = (
                texts.answer if random.random() < 0.7 else texts.partner
            )
            rows += [_pair(question, likely(each)) for each in (topic, *(texts.topics[one] for one in wrong))]
        with torch.autocast("cpu", torch.bfloat16):
            scores = network.score(*_padded(rows)).view(QUESTIONS, CANDIDATES)
        aim = torch.zeros(QUESTIONS, dtype=torch.long)
        # Against nothing at all, too: a score above zero is to mean that it fits.
        fits = torch.zeros_like(scores)
        fits[:, 0] = 1.0
        loss = functional.cross_entropy(scores, aim)
        loss = loss + 0.3 * functional.binary_cross_entropy_with_logits(scores, fits)
        yield loss, float((scores.argmax(-1) == aim).float().mean())


@torch.no_grad()
def _neighbours(network: EncoderNetwork, texts: Texts, count: int = 12) -> list[list[int]]:
    """Return for each topic those whose answers are most alike."""
    network.eval()
    vectors = network.embed(*_padded([_single(texts.answer(topic)) for topic in texts.topics]))
    network.train()
    likeness = vectors @ vectors.T
    likeness.fill_diagonal_(-1)
    return likeness.topk(count).indices.tolist()


def _single(text: list[int]) -> list[int]:
    return [_CLS, *text, _SEP]


def _pair(question: list[int], text: list[int]) -> list[int]:
    """Join a question and a text as llama.cpp's server does."""
    return [_CLS, *question, _SEP, _SEP, *text, _SEP]


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    there = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row)
        there[number, : len(row)] = True
    return tokens, there


def _write(path: Path, network: EncoderNetwork, *, head: bool) -> None:
    weights = {
        name: weight.detach().clone()
        for name, weight in network.named_parameters()
        if head or not name.startswith("cls")
    }
    save_file(weights, path)


if __name__ == "__main__":
    main()
