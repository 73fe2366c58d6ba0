"""The flags that versions of vLLM and SGLang take, read from the sources of their argument parsers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

#: Classes whose fields become flags.
_DESCRIBED = ("FrontendArgs", "BaseFrontendArgs", "ServerArgs")


def flags_of(package: str, folder: Path) -> set[str]:
    """Return the flags of the server of ``package``, whose sources lie in ``folder``."""
    root = folder / package
    if package == "vllm":
        files = [root / "engine" / "arg_utils.py", *(root / "entrypoints").rglob("*.py")]
    else:
        files = [root / "srt" / "server_args.py", *(root / "srt" / "arg_groups").rglob("*.py")]
    return {flag for file in files if file.exists() for flag in _flags(ast.parse(file.read_text()))}


def _flags(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=args):
                for each in args:
                    if isinstance(each, ast.Constant) and str(each.value).startswith("-"):
                        yield str(each.value)
            case ast.ClassDef(name=name, body=body) if name in _DESCRIBED:
                for each in body:
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                        yield _flag(each.target.id)
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=ast.Subscript(value=ast.Name(id="A")) as about
            ):
                yield from _annotated(name, ast.unparse(about))
            case _:
                pass


def _annotated(name: str, about: str) -> Iterator[str]:
    """Yield the flags of a field that is described by ``A[type, Arg(…)]``."""
    if "no_cli=True" in about:
        return
    own = re.search(r"cli_name='([^']+)'", about)
    yield own[1] if own else _flag(name)
    if aliases := re.search(r"aliases=\[([^\]]*)\]", about):
        yield from re.findall(r"'([^']+)'", aliases[1])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
