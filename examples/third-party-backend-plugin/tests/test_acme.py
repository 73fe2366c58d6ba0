"""AcmeBackend keeps the contract, and does what is its own."""

import logging
from pathlib import Path

from gpustack_acme import AcmeBackend

from gpustack.plugin import Host, LaunchRequest, ModelFacts, NoSettings
from gpustack.testing import InferenceBackendSuite

MODEL = ModelFacts(format="gguf", path="/m.gguf", weight_bytes=1000, context_length=8192, categories=("llm",))


class TestContract(InferenceBackendSuite):
    """What GPUStack expects of every backend."""

    extension = AcmeBackend
    context_parameter = "--ctx-size={}"
    refused_parameters = (("--ctx-size=much",),)


def test_what_the_user_gives_comes_last(tmp_path: Path) -> None:
    host = Host(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    request = LaunchRequest(
        instance_name="tiny-1",
        model_name="tiny",
        model=MODEL,
        command="/bin/engine",
        version="1",
        host="127.0.0.1",
        port=4000,
        model_path="/m.gguf",
        parameters=("--ctx-size=512", "--threads=2"),
    )
    argv = AcmeBackend(NoSettings(), host).launch(request).argv
    assert argv[argv.index("--ctx-size") + 1] == "512"
    assert argv[-1] == "--threads=2"
