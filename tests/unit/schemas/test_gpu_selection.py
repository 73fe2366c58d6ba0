"""GPUs that are chosen by hand: what may be sent, and what is said of what may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpustack.db import spec_digest
from gpustack.schemas import ModelCreate
from gpustack.schemas.gpu_selection import GpuName, GpuSelector, gpu_name

_PRINTABLE = st.characters(min_codepoint=32, exclude_categories=["Cs"])
_NAMES = st.builds(
    GpuName,
    st.text(_PRINTABLE, min_size=1, max_size=128),
    st.text(_PRINTABLE.filter(lambda each: each != ":"), min_size=1, max_size=64),
    st.integers(0, 999_999),
)


def a_model(**selector: Any) -> ModelCreate:
    return ModelCreate(name="tiny", local_path="/m.gguf", gpu_selector=GpuSelector(**selector))


@given(_NAMES)
def test_an_id_is_read_back_whatever_the_worker_is_called(name: GpuName) -> None:
    assert gpu_name(str(name)) == name


@given(st.text(max_size=300))
def test_what_is_read_is_written_the_same_and_all_else_is_refused(text: str) -> None:
    try:
        said = str(gpu_name(text))
    except ValueError as error:
        said = str(error)
    assert said == text or ("is no GPU" in said and "\n" not in said)


@pytest.mark.parametrize(
    ("selector", "line"),
    [
        ({"gpu_ids": ["box"]}, "'box' is no GPU: they are named worker:type:index, such as box:cuda:0"),
        ({"gpu_ids": ["box:cuda:00"]}, "'box:cuda:00' is no GPU"),
        ({"gpu_ids": ["box:cuda:-1"]}, "'box:cuda:-1' is no GPU"),
        ({"gpu_ids": [":cuda:1"]}, "':cuda:1' is no GPU"),
        ({"gpu_ids": ["box::1"]}, "'box::1' is no GPU"),
        ({"gpu_ids": ["box:cuda:0", "box:cuda:0"]}, "'box:cuda:0' is named twice"),
        ({"gpu_ids": []}, "no GPU is named; leave gpu_selector null when any will do"),
        ({}, "no GPU is named"),
        ({"gpu_ids": ["b:c:0"], "gpus_per_replica": 2}, "gpus_per_replica 2 is more than the number of GPUs"),
        ({"gpu_ids": ["b:c:0"], "gpus_per_replica": 0}, "greater than or equal to 1"),
        ({"gpu_ids": ["b:c:0"], "more": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(selector: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as refused:
        a_model(**selector)
    (problem,) = refused.value.errors()
    assert line in problem["msg"]
    assert "\n" not in problem["msg"]


def test_another_choice_needs_other_engines_and_another_order_does_not() -> None:
    plain = ModelCreate(name="tiny", local_path="/m.gguf")
    first = a_model(gpu_ids=["box:cuda:0", "box:cuda:1"])
    same = a_model(gpu_ids=["box:cuda:1", "box:cuda:0"])
    others = [a_model(gpu_ids=["box:cuda:0"]), a_model(gpu_ids=same.gpu_selector.gpu_ids, gpus_per_replica=1)]

    assert spec_digest(first) == spec_digest(same)
    assert len({spec_digest(each) for each in (plain, first, *others)}) == 4
