"""What users write behind `-p` is taken apart as they meant it, or refused in a line."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import Refused
from gpustack.plugin.flags import Flags

OWNED = {"--port": "the port", "--api-key": "access", "--model": "the model's files"}


def parse(*items: str, units: bool = False) -> Flags:
    return Flags.parse(items, aliases={"-tp": "--tensor-parallel-size"}, owned=OWNED, units=units)


@pytest.mark.parametrize(
    "items",
    [
        ("--max-model-len=4096",),
        ("--max-model-len 4096",),
        ("--max-model-len", "4096"),
        ("--max_model_len=4096",),
        ("--max-model-len=1", "--max-model-len=4096"),
    ],
)
def test_all_ways_to_write_a_flag_mean_the_same(items: tuple[str, ...]) -> None:
    assert parse(*items).integer("--max-model-len", 0, least=1) == 4096


def test_one_flag_may_have_several_values() -> None:
    flags = parse("--lora-modules", "sql=/a", "law=/b", "--enforce-eager")
    assert flags.values("--lora-modules") == ("sql=/a", "law=/b")
    assert flags.items == ("--lora-modules", "sql=/a", "law=/b", "--enforce-eager")


def test_values_with_spaces_behind_an_equals_sign_stay_whole() -> None:
    flags = parse('--speculative-config={"method": "ngram", "num_speculative_tokens": 4}')
    assert flags.document("--speculative-config")["method"] == "ngram"


def test_short_names_are_the_flags_that_they_stand_for() -> None:
    assert parse("-tp 4").integer("--tensor-parallel-size", 1, least=1) == 4
    assert parse("-tp", "4").items == ("-tp", "4")


@pytest.mark.parametrize("text", ["--port=1", "--por 1", "--api_key x", "--api", "--model=/etc"])
def test_what_gpustack_sets_is_refused_with_what_it_is(text: str) -> None:
    with pytest.raises(Refused, match="cannot be set: GPUStack sets"):
        parse(text)


@pytest.mark.parametrize("text", ["--model-impl=auto", "--portrait", "--api-server-count=2"])
def test_flags_that_begin_with_an_owned_one_are_others(text: str) -> None:
    assert parse(text).items == (text,)


@pytest.mark.parametrize("text", ["", "-", "--", "nonsense", "--=", "=x"])
def test_what_is_no_flag_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is no flag"):
        parse(text)


def test_what_would_end_the_engine_is_refused() -> None:
    for text in ("--help", "--version", "-h"):
        with pytest.raises(Refused, match="would end the engine"):
            parse(text)


@pytest.mark.parametrize("text", ["many", "1.5", "", "1e3", "٣", "32k", "-1", "0", "9" * 30])
def test_what_is_no_number_in_its_bounds_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(f"--max-num-seqs={text}").integer("--max-num-seqs", 1, least=1)


def test_units_count_where_the_engine_knows_them() -> None:
    assert parse("--max-model-len=32k", units=True).integer("--max-model-len", 1, least=1) == 32000
    assert parse("--max-model-len=1.5K", units=True).integer("--max-model-len", 1, least=1) == 1536


def test_a_switch_may_be_taken_back() -> None:
    assert parse("--enforce-eager").is_on("--enforce-eager")
    assert not parse("--enforce-eager", "--no-enforce-eager").is_on("--enforce-eager")
    assert not parse().is_on("--enforce-eager")


def test_a_flag_that_needs_a_value_says_so() -> None:
    with pytest.raises(Refused, match="--dtype needs a value"):
        parse("--dtype").text("--dtype")
    with pytest.raises(Refused, match="needs a JSON object"):
        parse("--speculative-config=[1]").document("--speculative-config")


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"--[a-z]{3,12}", fullmatch=True),
            st.lists(
                st.text("abc=/{}0123456789 .,", min_size=1).filter(lambda text: text.strip() == text),
                max_size=3,
            ),
        ),
        max_size=6,
    )
)
def test_what_is_passed_on_is_what_was_given(given_flags: list[tuple[str, list[str]]]) -> None:
    """Items of their own go on as they are; written as one line each they mean the same."""
    apart = [item for flag, values in given_flags for item in (flag, *values)]
    lines = [shlex.join([flag, *values]) for flag, values in given_flags]
    try:
        flags = Flags.parse(apart, owned=OWNED)
    except Refused:
        return
    assert [*flags.items] == apart
    assert Flags.parse(lines, owned=OWNED).items == flags.items
