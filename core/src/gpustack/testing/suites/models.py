"""The contract of models that come with a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.plugin import BundledModel, Category, ModelCard, ModelFacts, Refused
from gpustack.testing.suites.base import ExtensionSuite, error_line
from gpustack.testing.suites.checks import is_count, is_url
from gpustack.worker.facts import read_facts


class BundledModelSuite(ExtensionSuite[BundledModel[Any]]):
    """Holds what :class:`gpustack.plugin.BundledModel` promises."""

    kind = "bundled_models"

    def test_the_card_tells_people_what_it_is(self, made: BundledModel[Any]) -> None:
        """A title and a summary, one line each, and what the model can do."""
        card = self._card(made)
        self.one_line(card.title, "the card's title")
        self.one_line(card.summary, "the card's summary")
        assert card.categories, "the card names no category"
        unknown = [each for each in card.categories if each not in get_args(Category)]
        assert not unknown, f"the card's categories have {unknown}; there are {', '.join(get_args(Category))}"

    def test_the_cards_figures_can_be(self, made: BundledModel[Any]) -> None:
        """Numbers are counts, 0 where unknown; home is a URL or empty."""
        card = self._card(made)
        for name in ("parameters", "context_length"):
            value = getattr(card, name)
            assert is_count(value), f"the card's {name} is {value!r}; give a count, or 0"
        assert not card.home or is_url(card.home), f"the card's home {card.home!r} is no URL"
        assert "\n" not in card.license, "the card's license is an SPDX expression on one line"

    def test_the_path_leads_to_files(self, made: BundledModel[Any]) -> None:
        """It is absolute, the same at every call, and there is something at it."""
        path = self._path(made)
        assert path.is_absolute(), f"path returned {path}; give an absolute one"
        assert path.exists(), (
            f"path returned {path}, where there is nothing; raise Refused when files are missing"
        )
        assert self._path(made) == path, "path returned two paths for one model"

    def test_a_worker_can_read_the_model(self, made: BundledModel[Any]) -> None:
        """The headers of its files say what it is, as those of any other model that GPUStack serves."""
        self._facts(made)

    def test_the_card_says_what_the_files_say(self, made: BundledModel[Any]) -> None:
        """People choose by the card, and the scheduler by the files."""
        card, facts = self._card(made), self._facts(made)
        assert facts.categories[:1] in (card.categories[:1], ("unknown",)), (
            f"by its card the model is of kind {card.categories[0]}, by its files {facts.categories[0]}"
        )
        for name in ("context_length", "parameters"):
            told, read = getattr(card, name), getattr(facts, name)
            assert not (told and read) or abs(told - read) <= read / 20, (
                f"the card's {name} is {told}, that of the files {read}"
            )

    def _card(self, made: BundledModel[Any]) -> ModelCard:
        try:
            card: object = self.pure(made.card)
        except Refused as error:
            pytest.fail(f"card raised Refused: {error}; a card is there even when the files are not")
        assert isinstance(card, ModelCard), f"card returned {card!r}; return a ModelCard"
        return card

    def _path(self, made: BundledModel[Any]) -> Path:
        try:
            path: object = made.path()
        except Refused as error:
            pytest.fail(f"path refuses, so the model's files are missing here: {error}")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(f"path raised {error_line(error)}; raise Refused when files are missing")
        assert isinstance(path, Path), f"path returned {path!r}; return a pathlib.Path"
        return path

    def _facts(self, made: BundledModel[Any]) -> ModelFacts:
        try:
            return read_facts(self._path(made))
        except InvalidInput as error:
            pytest.fail(f"a worker cannot read the model: {error}")
