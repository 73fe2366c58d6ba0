"""Command lines with placeholders: split as a shell does, filled in without being split."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.kit.command_template import PLACEHOLDERS, filled, uses, words_of

VALUES = {name: f"<{name} of the test>" for name in PLACEHOLDERS}


def test_a_command_line_is_split_and_filled_in() -> None:
    line = "serve 'a b' --port={{port}} --host {{ host }} \\\n  --model \"{{model_path}}\""

    words = filled(words_of(line), VALUES | {"port": "40000", "model_path": "/my models/m.gguf"})

    assert words == (
        *("serve", "a b", "--port=40000", "--host", "<host of the test>"),
        *("--model", "/my models/m.gguf"),
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "serve {{prot}}",
            "there is no placeholder {{prot}}; the known ones are {{model_path}}, {{model_name}}",
        ),
        ("serve {{}}", "there is no placeholder {{}}"),
        ("serve 'x", "it cannot be split into words: no closing quotation"),
        ("  ", "it is empty"),
        ("A=1 serve", "it begins with the variable 'A=1'; put variables into env"),
        ("serve | tee log", "no shell runs it, so '|' means nothing; write sh -c '…'"),
        ("serve 'a\0b'", "it has a NUL character"),
    ],
)
def test_what_is_no_command_line_is_refused(line: str, says: str) -> None:
    with pytest.raises(
        ValueError, match="^" + says.replace("|", r"\|").replace("(", r"\(").split("…")[0].rstrip("'")
    ):
        words_of(line)


@given(
    st.lists(
        st.text(min_size=1).filter(lambda text: "{" not in text and "\0" not in text), min_size=1, max_size=5
    )
)
def test_what_was_quoted_comes_out_as_it_was(texts: list[str]) -> None:
    words = ["serve", *(f"x{text}" for text in texts)]
    assume = [word for word in words if "\\\n" not in word]
    assert list(filled(words_of(shlex.join(assume)), VALUES)) == assume


@given(st.text())
def test_a_value_is_never_split_nor_filled_in_again(value: str) -> None:
    assert filled(words_of("serve --x={{model_name}} {{model_path}}"), {"model_path": value}) == (
        *("serve", "--x={{model_name}}"),
        value,
    )


@given(st.text(max_size=60))
def test_any_text_is_split_or_refused_in_one_line(text: str) -> None:
    try:
        assert words_of(text)
    except ValueError as error:
        assert "\n" not in str(error).replace(text, "")  # noqa: PT017


def test_the_use_of_a_placeholder_is_seen() -> None:
    assert uses("{{ command }} -x", "command")
    assert not uses("command {{port}}", "command")
