"""What is shipped is what the corpus and the scripts here made, and the cards say what the files are."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import corpus
import gguf
import pytest
from gpustack_demo_model.models import Demo, DemoEmbedding, DemoReranker

from gpustack.extensions import load_catalogue
from gpustack.plugin import Host, NoSettings, Refused
from gpustack.worker.facts import read_facts

HOST = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))
MODELS = (Demo, DemoEmbedding, DemoReranker)


@pytest.fixture(params=MODELS, ids=lambda each: each.name)
def model(request: pytest.FixtureRequest) -> Any:
    return request.param(NoSettings(), HOST)


def test_all_are_found_by_their_plugin() -> None:
    found = load_catalogue().bundled_models
    assert {each.name for each in MODELS} == {n for n, each in found.items() if each.plugin == "demo-model"}


def test_the_file_was_made_of_what_is_here(model: Any) -> None:
    """A change of the corpus or of what trains makes the files old: train anew, as training/README.md says."""
    fields = gguf.GGUFReader(model.path()).fields
    scripts = corpus.SCRIPTS if isinstance(model, Demo) else corpus.ENCODER_SCRIPTS
    assert fields["gpustack.demo.corpus_sha256"].contents() == corpus.corpus_digest()
    assert fields["gpustack.demo.scripts_sha256"].contents() == corpus.scripts_digest(scripts)
    assert fields["gpustack.demo.export_sha256"].contents() == corpus.scripts_digest(("export.py",))


def test_the_card_says_what_the_file_says(model: Any) -> None:
    facts, card = read_facts(model.path()), model.card()
    assert facts.categories[: len(card.categories)] == card.categories
    assert facts.parameters == card.parameters
    assert facts.context_length == card.context_length
    assert facts.has_chat_template == isinstance(model, Demo)
    assert "demo" in card.summary


def test_they_are_small() -> None:
    assert sum(each(NoSettings(), HOST).path().stat().st_size for each in MODELS) <= 6 << 20


def test_a_broken_installation_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gpustack_demo_model.models._HERE", tmp_path)
    with pytest.raises(Refused, match=r"demo\.gguf is missing; install gpustack-demo-model anew"):
        Demo(NoSettings(), HOST).path()


def test_its_lifetime_needs_nothing() -> None:
    async def opened() -> str:
        async with Demo(NoSettings(), HOST) as model:
            return model.name

    assert asyncio.run(opened()) == "demo"
