"""The command: read the command line, load the model, serve until told to stop."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from gpustack_llama_server import values
from gpustack_llama_server.errors import CommandError, StartError
from gpustack_llama_server.options import OPTIONS, Option

PROGRAM = "gpustack-llama-server"
Given = list[tuple[Option, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    # Loading happens inside llama.cpp, where Python's own handlers would wait until it is over.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        command = _parser().parse_args(arguments)
        if command.version:
            return _show_version()
        return _serve(command.given or [])
    except CommandError as error:
        _say(f"{error} (see {PROGRAM} --help)")
        return 2
    except StartError as error:
        _say(str(error))
        return 1


# The command line ---------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line, where argparse would print all flags first."""
        raise CommandError(message)


class _Keep(argparse.Action):
    """Keeps what was given in its order, so that the last one of two wins."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        flag: str | None = None,
    ) -> None:
        given = [
            *(namespace.given or []),
            (self.const, value if isinstance(value, str) else self.const.bare or ""),
        ]
        namespace.given = given


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, allow_abbrev=False, description="Serve a GGUF model with llama.cpp.")
    parser.add_argument("--version", action="store_true", help="load llama.cpp, say the versions, and exit")
    # Reranking is embedding with another pooling; it comes as two settings.
    parser.add_argument(
        "--rerank", "--reranking", action=_Keep, dest="given", nargs=0, const=_RERANK, help="serve reranking"
    )
    for option in OPTIONS:
        arity: dict[str, Any] = {"metavar": option.metavar, "nargs": "?" if option.bare else None}
        parser.add_argument(
            *option.names,
            action=_Keep,
            dest="given",
            const=option,
            help=option.help.replace("%", "%%"),
            **(arity if option.takes_value else {"nargs": 0}),
        )
    return parser


class _Rerank(Option):
    def apply(self, module: Any, params: Any, text: str) -> None:
        params.embedding = True
        params.pooling_type = values.one_of("llama_pooling_type", "LLAMA_POOLING_TYPE_")(module, None, "rank")


_RERANK = _Rerank("--reranking", "pooling_type", values.true, "serve reranking")


# Serving ------------------------------------------------------------------------------------------------


def _show_version() -> int:
    module = _llama_cpp()
    sys.stdout.write(f"{PROGRAM} {_own_version()} (xllamacpp {module.__version__})\n")
    return 0


def _own_version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "unknown"


def _llama_cpp() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise StartError(f"xllamacpp cannot be loaded: {error}") from error
    return xllamacpp


def _serve(given: Given) -> int:
    _check_model({option.names[-1]: text for option, text in given}.get("--model"))
    module = _llama_cpp()
    params = _params(module, given)
    _check_port(params)
    _warn_without_gpu(module, given)
    try:
        server = module.Server(params)
    except RuntimeError as error:
        raise StartError(
            f"llama.cpp cannot serve {params.model.path}; the lines around this one say why"
        ) from error
    # Old versions do not tell their address; the variable also keeps the server alive.
    _say(f"serving on {getattr(server, 'listening_address', '') or params.port}")
    _wait_for_signal()
    # Nothing of the server needs to be saved, and its own end would wait for requests in flight.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _params(module: Any, given: Given) -> Any:
    params = module.CommonParams()
    params.port = 8080
    for name, value in (("ui", False), ("webui", False), ("cache_ram_mib", 256)):
        if hasattr(params, name):
            setattr(params, name, value)
    for option, text in given:
        option.apply(module, params, text)
    if params.cpuparams_batch.n_threads == -1:
        params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    values.use_draft(module, params)
    return params


def _check_model(path: str | None) -> None:
    if path is None:
        raise CommandError("--model is missing")
    try:
        with Path(path).open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise StartError(f"model {path} cannot be read: {error.strerror}") from error
    if start != b"GGUF":
        raise StartError(f"model {path} is not a GGUF file")


def _check_port(params: Any) -> None:
    """Refuse a taken port by name; llama.cpp would only say that it could not start."""
    hosts = getattr(params, "hostnames", None) or [params.hostname]
    for host in hosts:
        if host.endswith(".sock"):
            continue
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, params.port))
        except OverflowError:
            raise CommandError(f"--port: {params.port} is not between 0 and 65535") from None
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
            raise StartError(f"port {params.port} on {host} {why}") from error


def _warn_without_gpu(module: Any, given: Given) -> None:
    """Say it when layers are meant for GPUs that this build of llama.cpp does not see; it would not mind."""
    asked = [text for option, text in given if option.names[-1] == "--gpu-layers"]
    kinds = [getattr(device["type"], "name", "") for device in module.get_device_info()]
    if asked and asked[-1] != "0" and not any("GPU" in kind for kind in kinds):
        _say(f"xllamacpp {module.__version__} sees no GPU here: everything runs on the CPU")


def _wait_for_signal() -> None:
    """Return at the first SIGTERM or SIGINT, whichever thread the system hands it to."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    select.select([ours], [], [])


def _say(line: str) -> None:
    # A full disk below the log is no reason to stop serving.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{PROGRAM}: {line}\n")
        sys.stderr.flush()
