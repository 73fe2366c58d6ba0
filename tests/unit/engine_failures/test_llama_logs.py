"""Why an engine made of llama.cpp ended, by what it really said."""

from __future__ import annotations

import pytest

from gpustack.plugin.llama_logs import failure_in

LOADED = "0.00.470.411 W load_tensors: ffn up/down are swapped\n"
END = "0.00.510.454 E srv          init: exiting due to model loading error\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "0.00.020.156 E llama_model_load: error loading model: unknown model architecture: 'lmxyz'\n",
            (
                "this version of the engine does not know models of architecture 'lmxyz'; choose a newer one with "
                "--backend-version"
            ),
        ),
        (
            (
                "E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file bounds, "
                "model is corrupted or incomplete\n"
            ),
            (
                "the model's file is damaged or incomplete (tensor 'token_embd.weight' data is not within the file bounds, "
                "model is corrupted or incomplete); copy or download it again"
            ),
        ),
        (
            "E llama_model_load: error loading model: missing tensor 'blk.0.attn_q.weight'\n",
            "the engine cannot load the model: missing tensor 'blk.0.attn_q.weight'",
        ),
        (
            (
                "E mtmd_init_from_file: error: mismatch between text model (n_embd = 128) and mmproj (n_embd = 96)\n"
                "hint: you may be using wrong mmproj\n"
            ),
            (
                "the projector is another model's (it gives n_embd = 96, and the model takes n_embd = 128); name the right "
                "one with --mmproj, or leave it out with --no-mmproj"
            ),
        ),
        (
            (
                "E llama_adapter_lora_init_from_file_ptr: failed to apply lora adapter: tensor 'blk.0.attn_q.weight' has "
                "incorrect shape (hint: maybe wrong base model?)\n"
            ),
            (
                "the adapter cannot be used with this model: tensor 'blk.0.attn_q.weight' has incorrect shape (hint: maybe "
                "wrong base model?)"
            ),
        ),
        (
            "failed to register RPC device 192.0.2.7:41001: [Errno 111] Connection refused\n",
            "another worker's GPU is not reached: 192.0.2.7:41001: [Errno 111] Connection refused",
        ),
        (
            (
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of "
                "memory\n"
            ),
            (
                "there was not enough memory: ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096.00 MiB on device 0: "
                "cudaMalloc failed: out of memory"
            ),
        ),
        ("", ""),
        ("0.00.1 I all is well\n", ""),
    ],
)
def test_it_is_one_line_that_says_what_to_do(log: str, said: str) -> None:
    assert failure_in(LOADED + log + END) == said
