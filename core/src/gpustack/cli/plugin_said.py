"""What pip and uv say: what they would change, and why they failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

#: A line of uv's for each distribution that comes (+), goes (-) or is put there anew (~).
_UV_CHANGE = re.compile(r"^ [+~] ([A-Za-z0-9][A-Za-z0-9._-]*)(?:==| @ )", re.MULTILINE)
#: What pip has between its heading for a conflict and the next empty line: who asks for what.
_PIP_CONFLICT = re.compile(r"^The conflict is caused by:\n((?:[ \t]+\S.*\n?)+)", re.MULTILINE)
#: uv's reasons begin with this word, and go on in lines that are indented.
_UV_CONFLICT = re.compile(r"No solution found.*\n(?:.*?)(Because (?:.+\n?)+)")
#: pip calls what it is told by our constraints so.
_OURS = "The user requested (constraint)"


def of_pip(report: Path) -> set[str]:
    """Return the distributions that pip's report of a dry run would install; none when it wrote no report."""
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
        return {str(each["metadata"]["name"]) for each in document["install"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def of_uv(said: str) -> set[str]:
    """Return the distributions that uv says it would install."""
    return set(_UV_CHANGE.findall(said))


def explained(said: str) -> str:
    """Return in one line why an installation failed: of a conflict, who asks for what."""
    from gpustack.worker.artifacts.pipx import explain_failure

    if found := _PIP_CONFLICT.search(said):
        asks = [line.strip().replace(_OURS, "GPUStack has") for line in found[1].splitlines()]
        return f"there is a conflict: {'; '.join(asks)}"
    if found := _UV_CONFLICT.search(said):
        return f"there is a conflict: {' '.join(found[1].split())}"
    return explain_failure(said)[0]
