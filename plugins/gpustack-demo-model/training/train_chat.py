"""Trains the chat model: ``python train_chat.py OUT`` writes ``OUT/weights.safetensors``, tokenizer and report.

The same machine, number of processes and seed give the same bytes. Two cores need about three quarters of an hour: two
processes of one thread each, which see different samples and learn from both, are half as fast again as one of two threads.

The hard part is to tell which of some 250 topics a question means; the answers are known by heart soon. So the first
part of the training sees single questions with the first words of an answer, which go by quickly, and the second
whole conversations. Besides the next word, the network learns to tell the topic: by the state before the answer, and by
the mean of the states over the question, after the embedding and half way up. Without these it takes several times as
long to find out what matters in a question. They are not shipped.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import corpus
import torch
from chat_network import ChatNetwork, Shape
from dialogues import SILENT, Dialogues, Sample
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokens import Pieces, train_chat_tokenizer
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

SEED = 7
STEPS = 10_000
#: Part of the steps that see single questions only.
SINGLE = 0.6
WARM_UP = 150
#: Tokens of a batch of one process, padding included.
BATCH = 2048
#: Samples that are sorted by length together, so that little is padded.
POOL = 1024
#: Of embeddings and vectors (AdamW), and of the layers' matrices (Muon).
RATE, MATRIX_RATE = 1e-2, 2e-2
DECAY = 0.05
DROPOUT = 0.1
VOCABULARY = 6144
#: Weights of telling the topic before the answer, and by the mean over the question.
TOPIC_WEIGHT, MEAN_WEIGHT = 1.0, 0.5
#: After which layers the mean is looked at; 0 is the embedding.
MEAN_OF = (0, 2)
#: Of the running average of the weights, which is what is shipped.
AVERAGE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some samples as tensors. ``rows``, ``starts``, ``ends`` and ``topics`` have one element for each question."""

    tokens: Tensor
    #: What follows each token, SILENT where it is not learnt.
    labels: Tensor
    rows: Tensor
    starts: Tensor
    ends: Tensor
    topics: Tensor


class Judges(nn.Module):
    """Tell the topic of questions by the network's states."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.before = nn.Linear(hidden, classes)
        self.means = nn.ModuleList(nn.Linear(hidden, classes) for _ in MEAN_OF)

    def forward(self, states: list[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the scores of the topics: before the answers, and by the means of the questions."""
        before = self.before(states[-1][batch.rows, batch.ends]).float()
        length = (batch.ends - batch.starts).unsqueeze(-1)
        means = []
        for judge, layer in zip(self.means, MEAN_OF, strict=True):
            sums = torch.cumsum(states[layer].float(), 1)
            mean = (sums[batch.rows, batch.ends] - sums[batch.rows, batch.starts]) / length
            means.append(judge(functional.layer_norm(mean, mean.shape[-1:])).float())
        return before, means


def main() -> None:
    """Train and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        multiprocessing.spawn(_train, (options, meeting), nprocs=options.processes)


def _train(rank: int, options: argparse.Namespace, meeting: str) -> None:
    """Train in one of the processes; the first of them writes."""
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    topics, off_topic = corpus.topics(), corpus.off_topic()
    tokenizer = train_chat_tokenizer(_texts(topics, off_topic), VOCABULARY)
    random = Random(f"{SEED} {rank}")
    dialogues = Dialogues(topics, off_topic, Pieces(tokenizer, random), random)
    network = ChatNetwork(Shape(vocabulary=tokenizer.get_vocab_size()), DROPOUT)
    judges = Judges(network.shape.hidden, dialogues.classes)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    weights = [*network.parameters(), *judges.parameters()]
    optimisers = _optimisers(network, judges)
    batches, said, seen, began = _batches(dialogues, random), dict[str, float](), 0, time.monotonic()
    network.train()
    # The weights are the same everywhere, what is left out of the embeddings is not.
    torch.manual_seed(SEED + rank)
    for step in range(1, options.steps + 1):
        if step > SINGLE * options.steps:
            dialogues.single, dialogues.cut = 0.8, 0.5
        batch = next(batches)
        seen += batch.tokens.numel() * options.processes
        loss, figures = _loss(network, judges, batch)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _share_gradients(weights, options.processes)
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["highest"] * _height(step, options.steps)
            optimiser.step()
        _follow(average, network, min(AVERAGE, step / (step + 100)))
        for name, value in figures.items():
            said[name] = value if step == 1 else said[name] + (value - said[name]) * 0.02
        if rank == 0 and step % 200 == 0:
            seconds = time.monotonic() - began
            line = " ".join(f"{name} {value:.4f}" for name, value in said.items())
            print(f"step {step} {line} {seconds:.0f} s {seen / seconds:.0f} tokens/s", flush=True)
        if rank == 0 and options.save_every and step % options.save_every == 0:
            _write(options.out / f"step-{step}", average, tokenizer, network.shape, {"steps": step})
    if rank == 0:
        minutes = round((time.monotonic() - began) / 60, 1)
        report = {"seed": SEED, "steps": options.steps, "tokens": seen, "minutes": minutes, **said}
        _write(options.out, average, tokenizer, network.shape, report)
    distributed.destroy_process_group()


def _share_gradients(weights: list[nn.Parameter], processes: int) -> None:
    """Give every process the mean of all gradients."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([each.flatten() for each in gradients])
    distributed.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS")
    return parser.parse_args()


def _texts(topics: list[corpus.Topic], off_topic: list[str]) -> Iterator[str]:
    """What the tokenizer learns its tokens of: answers count more, so that they are short."""
    for topic in topics:
        yield from [topic.answer] * 20
        for wording in topic.wordings:
            yield wording
            yield wording.lower()
    yield from [corpus.OFF_TOPIC_ANSWER] * 20
    yield from off_topic
    for name in ("systems", "brief", "named"):
        yield from corpus.lines(name)
    yield from ["system\nuser\nassistant\n"] * 50


def _batches(dialogues: Dialogues, random: Random) -> Iterator[Batch]:
    while True:
        pool = sorted((dialogues.sample() for _ in range(POOL)), key=lambda each: len(each.ids))
        batches: list[list[Sample]] = [[]]
        for sample in pool:
            if batches[-1] and (len(batches[-1]) + 1) * len(sample.ids) > BATCH:
                batches.append([])
            batches[-1].append(sample)
        random.shuffle(batches)
        yield from map(_tensors, batches)


def _tensors(samples: list[Sample]) -> Batch:
    length = max(len(sample.ids) for sample in samples) - 1
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    labels = torch.full((len(samples), length), SILENT)
    questions = []
    for row, sample in enumerate(samples):
        count = len(sample.ids) - 1
        tokens[row, :count] = torch.tensor(sample.ids[:-1])
        labels[row, :count] = torch.tensor(sample.labels[1:])
        questions += [(row, *asked) for asked in sample.asked]
    rows, starts, ends, topics = torch.tensor(questions).T
    return Batch(tokens=tokens, labels=labels, rows=rows, starts=starts, ends=ends, topics=topics)


def _loss(network: ChatNetwork, judges: Judges, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        states = network(batch.tokens)
        learnt = batch.labels != SILENT
        words = functional.cross_entropy(network.logits(states[-1][learnt]).float(), batch.labels[learnt])
        before, means = judges(states, batch)
    topic, *others = (
        functional.cross_entropy(scores, batch.topics, label_smoothing=0.05) for scores in (before, *means)
    )
    right = (before.argmax(-1) == batch.topics).float().mean()
    figures = {"words": float(words.detach()), "topic": float(topic.detach()), "right": float(right)}
    return words + TOPIC_WEIGHT * topic + MEAN_WEIGHT * sum(others), figures


def _optimisers(network: ChatNetwork, judges: Judges) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the layers' matrices, where it learns twice as fast, and AdamW for all else."""
    matrices = [weight for weight in network.layers.parameters() if weight.ndim == 2]
    chosen = set(map(id, matrices))
    others = [each for each in [*network.parameters(), *judges.parameters()] if id(each) not in chosen]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=DECAY)
    adam = torch.optim.AdamW(
        [
            {"params": [each for each in others if each.ndim == 2], "weight_decay": DECAY},
            {"params": [each for each in others if each.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(0.9, 0.98),
        fused=True,
    )
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["highest"] = group["lr"]
    return muon, adam


def _height(step: int, steps: int) -> float:
    """Return the part of the highest learning rate: up in a line, down in half a cosine."""
    return min(1.0, step / WARM_UP) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


@torch.no_grad()
def _follow(average: dict[str, Tensor], network: nn.Module, share: float) -> None:
    for name, weight in network.named_parameters():
        average[name].lerp_(weight, 1 - share)


def _write(
    out: Path, weights: dict[str, Tensor], tokenizer: Tokenizer, shape: Shape, report: dict[str, object]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, out / "weights.safetensors")
    tokenizer.save(str(out / "tokenizer.json"))
    digests = {"corpus": corpus.corpus_digest(), "scripts": corpus.scripts_digest(corpus.SCRIPTS)}
    (out / "training.json").write_text(
        json.dumps({"shape": asdict(shape), **digests, **report}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
