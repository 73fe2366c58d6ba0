"""Whatever goes in, settings and lines come out: never an error of another kind, and never a secret."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpustack.app.start import described
from gpustack.extensions import load_catalogue
from gpustack.settings.load import Flags, Loaded, read
from gpustack.settings.shown import as_text, shown

OPTIONS = load_catalogue().options
NAMES = sorted(OPTIONS)
SECRETS = [name for name in NAMES if OPTIONS[name].secret]
#: What every secret here contains, and nothing else.
MARK = "Xyzzy§"

pytestmark = pytest.mark.filterwarnings("error")
quickly = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)

#: Looks like something to somebody who reads values.
TRICKY = st.sampled_from(
    [
        "", " ", "-", "--", "true", "null", "~", "0", "-1", "65536", "1e5", "0x1F", "1-2", "2-1", "1-", "[", "{", "[]",
        "{}", '["a"]', '[["a"]]', '{"ram": 1}', '{"ram": "x"}', '{"memory": [1]}', '{"wantNameId": {}}', "http://",
        "http://h", "http://h:99999", "http://[::1", "http://u:p@h/x?y#z", "postgresql://", "postgresql://h/d", "~x/y",
        "10.0.0.1", "::1", "fe80::1%x", "1.2.3", "*", "a,b", ",", "@format {env[HOME]}", "@jinja {{ 1 / 0 }}", "tcp://1:2",
        "/" * 300, "x" * 5000, "9" * 5000, "[" * 2000, '{"a":' * 2000, "\\", "\x7f", "\u202e", "\ud800", "٣", "\n", "\t", "%s",
    ]
)  # fmt: skip
TEXT = st.text(max_size=30).filter(lambda text: MARK not in text) | TRICKY
SECRET = st.builds("{}{}{}".format, st.text(max_size=5), st.just(MARK), TEXT) | st.builds(
    "postgresql://user:{}{}@{}".format,
    st.just(MARK),
    TEXT,
    st.sampled_from(["host/name", "[::1", "", "h?x=y"]),
)


def texts(names: list[str], text: st.SearchStrategy[str] = TEXT) -> st.SearchStrategy[dict[str, str]]:
    """Give some options text, and the secret ones a secret."""
    return st.fixed_dictionaries({}, optional={name: SECRET if name in SECRETS else text for name in names})


def is_well(flags: Flags, *, secrets_are_marked: bool = True) -> Loaded:
    """Read the settings, and check what holds for all of them."""
    loaded = read(flags, OPTIONS)
    assert isinstance(loaded, Loaded)
    rows = shown(loaded)
    lines = [*loaded.problems, *loaded.warnings, *(as_text(row["value"]) for row in rows)]
    for line in lines:
        assert len(line.splitlines()) <= 1, line
        assert line.isprintable(), line
        assert not secrets_are_marked or MARK not in line, line
    assert not secrets_are_marked or MARK not in json.dumps(rows, ensure_ascii=False)
    json.dumps(described(loaded), allow_nan=True)
    return loaded


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a moment; the fixture does it once for a whole test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in variables.items():
            patch.setenv(name, text)
        yield


@quickly
@given(texts(NAMES))
def test_any_text_as_flags(flags: dict[str, str]) -> None:
    is_well(flags)


@quickly
@given(st.dictionaries(st.sampled_from(NAMES), st.lists(TEXT, max_size=3), max_size=5))
def test_flags_given_several_times(flags: dict[str, list[str]]) -> None:
    lists = {name: values for name, values in flags.items() if OPTIONS[name].repeatable}
    is_well(
        {**{name: values[-1] for name, values in flags.items() if values}, **lists}, secrets_are_marked=False
    )


def _environment_takes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@quickly
@given(texts([variable for name in NAMES for variable in OPTIONS[name].variables], TEXT))
def test_any_text_in_variables(variables: dict[str, str]) -> None:
    marked = {variable for name in SECRETS for variable in OPTIONS[name].variables}
    given_ = {
        name: MARK + text if name in marked else text
        for name, text in variables.items()
        if _environment_takes(text)
    }
    with environment(given_):
        is_well({})


@quickly
@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=20), max_size=5))
def test_variables_that_are_no_options(variables: dict[str, str]) -> None:
    given_ = {f"GPUSTACK_{name}": MARK + text for name, text in variables.items()}
    known = {variable for option in OPTIONS.values() for variable in option.variables}
    usable = {
        name: text
        for name, text in given_.items()
        if _environment_takes(name + text) and "=" not in name and name not in known
    }
    with environment(usable):
        is_well({})


@quickly
@given(content=st.text(max_size=80) | st.binary(max_size=80))
def test_any_document_as_the_file(content: str | bytes, file: Path) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    is_well({"config_file": str(file)}, secrets_are_marked=False)


#: Pieces that YAML makes something of.
PIECES = st.sampled_from(
    [
        "port", "token", "allow_origins", "system_reserved", "saml_security", "worker_name", "<<", "? ", ": ", ":", "- ",
        "\n", "\n  ", "\n\t", "{", "}", "[", "]", ",", "&a ", "*a", "*b", "!x ", "!!int ", "!!binary ", "!!timestamp ",
        "!!set ", "!!bool ", "!!python/object:os.system ", "'", '"', "|", ">", "%YAML 1.2", "---", "...", "#", "\\", "~",
        "0o17", "1_0", ".inf", ".nan", "1:20", "2020-13-45", "2020-01-01T00:00:00Z", "on", "=", "@x", "`", "\x85", "\u2028",
    ]
)  # fmt: skip


@settings(quickly, max_examples=80)
@given(content=st.lists(PIECES, max_size=14).map("".join))
def test_any_pieces_of_yaml_as_the_file(content: str, file: Path) -> None:
    file.write_text(content, encoding="utf-8", newline="")
    is_well({"config_file": str(file)}, secrets_are_marked=False)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**40, 10**60)
    | st.floats()
    | TEXT
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=8,
)


@quickly
@given(
    content=st.dictionaries(st.sampled_from(NAMES) | TEXT | SCALARS, VALUES, max_size=6)
    | VALUES.map(lambda value: dict.fromkeys(NAMES, value)),
    secrets=texts(SECRETS),
)
def test_any_structure_as_the_file(content: dict[Any, Any], secrets: dict[str, str], file: Path) -> None:
    written = {**{key: value for key, value in content.items() if key not in SECRETS}, **secrets}
    try:
        file.write_text(yaml.safe_dump(written, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, TypeError, ValueError):
        file.write_text(yaml.safe_dump(dict(secrets)), encoding="utf-8")  # nothing that could be in a file
    loaded = is_well({"config_file": str(file)})
    strange = {key for key in written if key not in NAMES or key == "config_file"}
    assert not strange or loaded.problems


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def _of_itself() -> dict[str, Any]:
    value: dict[str, Any] = {"ram": 1}
    value["vram"] = value
    return value


SHARED: list[Any] = ["GET"]
STRUCTURES: dict[str, Any] = {
    "one that contains itself": _of_itself(),
    "one below itself": [_of_itself()],
    "one shared by two": {"a": SHARED, "b": SHARED},
    "deep": _deep(80),
    "a number without end": float("inf"),
    "a number of many digits": 16**3000,
    "a set": {"GET", "PUT"},
    "a date": dt.date(2020, 1, 1),
    "bytes": b"\xff",
}


@pytest.mark.parametrize("what", STRUCTURES)
@pytest.mark.parametrize(
    "name", ["port", "debug", "token", "data_dir", "allow_methods", "saml_security", "system_reserved"]
)
def test_structures_that_are_no_value(what: str, name: str, file: Path) -> None:
    file.write_text(yaml.safe_dump({name: STRUCTURES[what]}))
    loaded = is_well({"config_file": str(file)})
    if what.startswith("one ") and what != "one shared by two":
        assert len(loaded.problems) == 1


def test_the_same_alias_thousands_of_times(file: Path) -> None:
    file.write_text(
        "a: &a [x]\n" + "".join(f"{key}: &{key} [*{last}, *{last}]\n" for last, key in _pairs("abcdefgh"))
    )
    is_well({"config_file": str(file)})


def _pairs(letters: str) -> Iterator[tuple[str, str]]:
    return itertools.pairwise(letters)
