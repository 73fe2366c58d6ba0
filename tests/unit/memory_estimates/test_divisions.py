"""What lies on one GPU when a model is cut: weights, heads, stages, experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import ModelFacts, Refused
from gpustack.plugin.memory import (
    Cache,
    Division,
    Workload,
    bytes_per_token,
    cache_bytes,
    costs_of,
    estimate,
    weight_bytes,
)

GIB = 1 << 30
#: Sixteen layers of 100, embeddings of 60 and a head of 60.
SIXTEEN = ModelFacts(
    format="safetensors",
    path="/m",
    weight_bytes=1730,
    tensor_bytes=1720,
    layer_bytes=(100,) * 16,
    embedding_bytes=60,
    output_bytes=60,
    parameters=860,
    layers=16,
    hidden_size=1024,
    attention_heads=16,
    kv_heads=4,
    key_length=64,
    value_length=64,
    inner_size=4096,
    vocabulary=32000,
)
ONE = Cache(context=1, page=1)


def test_tensor_parallelism_cuts_everything() -> None:
    assert weight_bytes(SIXTEEN, Division(tensor=4)) == 1720 / 4
    assert cache_bytes(SIXTEEN, ONE, Division(tensor=4)) * 4 == cache_bytes(SIXTEEN, ONE)


def test_heads_that_do_not_suffice_are_doubled() -> None:
    # Four heads on eight GPUs: each keeps one.
    on_one = cache_bytes(SIXTEEN, ONE, Division(tensor=8))

    assert on_one == cache_bytes(SIXTEEN, ONE) / 4
    assert weight_bytes(SIXTEEN, Division(tensor=8)) > 1720 / 8


def test_heads_that_cannot_be_dealt_out_evenly_count_for_the_gpu_that_has_more() -> None:
    five = replace(SIXTEEN, kv_heads=5)

    assert cache_bytes(five, ONE, Division(tensor=2)) == cache_bytes(five, ONE) * 3 / 5


def test_stages_share_layers_and_have_one_end_each() -> None:
    assert weight_bytes(SIXTEEN, Division(pipeline=2)) == 8 * 100 + 60
    assert cache_bytes(SIXTEEN, ONE, Division(pipeline=2)) * 2 == cache_bytes(SIXTEEN, ONE)
    # Six, five and five layers.
    assert weight_bytes(SIXTEEN, Division(pipeline=3)) == 6 * 100 + 60


def test_a_heavy_layer_counts_where_it_is() -> None:
    heavy = replace(SIXTEEN, layer_bytes=(100,) * 12 + (200,) * 4, tensor_bytes=2120)

    assert weight_bytes(heavy, Division(pipeline=4)) == 4 * 200 + 60


def test_copies_side_by_side_each_have_all() -> None:
    assert weight_bytes(SIXTEEN, Division(data=2)) == 1720
    assert cache_bytes(SIXTEEN, ONE, Division(data=2)) == cache_bytes(SIXTEEN, ONE)


def test_experts_are_cut_or_dealt_out() -> None:
    many = replace(SIXTEEN, experts=8, expert_bytes=800)

    assert weight_bytes(many, Division(tensor=2, data=4)) == 920 / 2 + 800 / 2
    assert weight_bytes(many, Division(tensor=2, data=4, experts=True)) == 920 / 2 + 800 / 8


def test_the_vector_of_latent_attention_is_whole_on_every_gpu() -> None:
    latent = replace(SIXTEEN, latent_rank=512, rotary_length=64, key_length=576, value_length=0, kv_heads=1)

    assert bytes_per_token(latent) == 16 * 576 * 2
    assert cache_bytes(latent, ONE, Division(tensor=8)) == cache_bytes(latent, ONE)


def test_encoders_of_pictures_are_whole_on_every_gpu() -> None:
    sees = replace(SIXTEEN, vision_bytes=400, tensor_bytes=2120)

    assert weight_bytes(sees, Division(tensor=2)) == 1720 / 2 + 400


@pytest.mark.parametrize(
    ("division", "said"),
    [
        (Division(tensor=3), "16 attention heads cannot be dealt out evenly to 3 GPUs"),
        (Division(pipeline=17), "16 layers are too few for 17 stages"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_words(division: Division, said: str) -> None:
    work = Workload(cache=Cache(context=1024), step=1024)

    assert not division.fits(SIXTEEN).ok
    with pytest.raises(Refused, match=said):
        estimate(SIXTEEN, work, division, costs_of("vllm"))


def test_no_gpu_at_all_is_no_division() -> None:
    with pytest.raises(Refused, match="each is 1 or more"):
        Division(tensor=0)


def test_an_engine_nobody_knows_is_refused() -> None:
    with pytest.raises(Refused, match="no costs are known of engine 'acme'"):
        costs_of("acme")


def test_costs_follow_the_version() -> None:
    old, new = costs_of("vllm", "0.10.2"), costs_of("vllm", "0.32.0+cpu")

    assert old.since < new.since
    assert costs_of("vllm", "nightly") == costs_of("vllm", "") == new


facts = st.builds(
    replace,
    st.just(SIXTEEN),
    kv_heads=st.sampled_from([1, 2, 4, 8, 16]),
    experts=st.just(8),
    expert_bytes=st.integers(0, 1000),
    vision_bytes=st.integers(0, 50),
    sliding_window=st.sampled_from([0, 128, 4096]),
    window_layers=st.integers(0, 16),
)
divisions = st.builds(
    Division,
    tensor=st.sampled_from([1, 2, 4, 8, 16]),
    pipeline=st.integers(1, 16),
    data=st.integers(1, 4),
    experts=st.booleans(),
)
caches = st.builds(
    Cache,
    context=st.integers(1, 100_000),
    sequences=st.integers(1, 64),
    page=st.sampled_from([1, 16, 256]),
    step=st.integers(0, 8192),
    shared=st.booleans(),
)


@given(facts, divisions)
def test_no_cut_loses_weights(model: ModelFacts, division: Division) -> None:
    on_one = weight_bytes(model, division)

    # The heaviest has its even share at least, and all that there is at most.
    assert on_one * division.gpus >= model.tensor_bytes
    assert on_one <= model.tensor_bytes + division.tensor * division.pipeline + _doubled(model, division)


def _doubled(model: ModelFacts, division: Division) -> int:
    row = model.hidden_size * (model.key_length + model.value_length) * 2
    return row * model.layers if division.tensor > model.kv_heads else 0


@given(facts, caches, divisions)
def test_no_cut_loses_keys(model: ModelFacts, cache: Cache, division: Division) -> None:
    whole, on_one = cache_bytes(model, cache), cache_bytes(model, cache, division)

    assert on_one <= whole
    assert (on_one + 1) * division.tensor * division.pipeline >= whole


@given(facts, caches, st.integers(1, 4096))
def test_more_context_or_sequences_never_take_less(model: ModelFacts, cache: Cache, more: int) -> None:
    before = cache_bytes(model, cache)

    assert cache_bytes(model, replace(cache, context=cache.context + more)) >= before
    assert cache_bytes(model, replace(cache, sequences=cache.sequences + more)) >= before


@given(facts, caches)
def test_a_window_never_takes_more_than_none(model: ModelFacts, cache: Cache) -> None:
    assert cache_bytes(model, cache) <= cache_bytes(model, replace(cache, full_windows=True))
