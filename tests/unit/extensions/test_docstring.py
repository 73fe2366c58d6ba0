"""The example at the top of the room runs as it stands."""

import subprocess
import sys
import textwrap

import gpustack.extensions


def test_the_example_works_when_pasted() -> None:
    text = gpustack.extensions.__doc__ or ""
    example = textwrap.dedent(text[text.index("    import") : text.index("A plugin that is broken")])

    answer = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=False
    )

    assert (answer.returncode, answer.stdout.strip()) == (0, "Verdict(ok=True, reason='')"), answer.stderr
