"""The one line of a log that says why an engine ended, among tracebacks of several processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.lifecycle.engine import failed_start, will_retry
from gpustack.plugin.tracebacks import root_cause

#: As vLLM 0.32.0 wrote it.
TOO_LONG = """\
(APIServer pid=4535) Traceback (most recent call last):
(APIServer pid=4535)   File "/venv/bin/vllm", line 8, in <module>
(APIServer pid=4535)     sys.exit(main())
(APIServer pid=4535) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=4535)   Value error, User-specified max_model_len (512) is greater than the derived max_model_len (max_position_embeddings=256). [type=value_error, input_value=ArgsKwargs((), {'model': '/m'}), input_type=ArgsKwargs]
(APIServer pid=4535)     For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
IN_THE_CORE = """\
(EngineCore pid=9) ERROR 11-27 18:16:31 [core.py:900] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-27 18:16:31 [core.py:900] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-27 18:16:31 [core.py:900]   File "/venv/x.py", line 1, in f
(EngineCore pid=9) ERROR 11-27 18:16:31 [core.py:900] ValueError: To serve at least one request 4.0 GiB KV cache is needed
(EngineCore pid=9) Process EngineCore:
(APIServer pid=8) Traceback (most recent call last):
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""
SGLANG = """\
[2026-11-27 18:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/venv/scheduler.py", line 1, in run
RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.

[2026-11-27 18:00:01] Received sigquit from a child process.
"""


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            TOO_LONG,
            "User-specified max_model_len (512) is greater than the derived max_model_len (max_position_embeddings=256).",
        ),
        (IN_THE_CORE, "To serve at least one request 4.0 GiB KV cache is needed"),
        (SGLANG, "Not enough memory. Please try to increase --mem-fraction-static."),
        ("INFO loading\nall is well\n", ""),
        ("", ""),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)
def test_the_error_behind_the_others_is_told(log: str, says: str) -> None:
    assert root_cause(log) == says


@given(st.text())
def test_any_log_gives_at_most_a_line(log: str) -> None:
    said = root_cause(log)
    assert len(said) <= 500
    assert "\n" not in said


def test_a_reason_leaves_our_own_words_as_they_are() -> None:
    plain = "the engine exited with status 1 after 27 s while loading the model; trying again in 10 s"
    told = "the engine exited with status 1 after 31 s while loading the model: no such type, trying again in 5 s; trying again now"
    assert failed_start(plain) == failed_start(told) != ""
    assert will_retry(told)
    assert not will_retry(
        "the engine exited with status 1 while loading the model: boom, trying again in 5 s"
    )
