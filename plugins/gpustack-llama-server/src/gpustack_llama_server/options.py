"""The flags, by their names in llama-server, and the settings of ``xllamacpp.CommonParams`` behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpustack_llama_server import values as v
from gpustack_llama_server.errors import CommandError


@dataclass(frozen=True, slots=True)
class Option:
    """One flag.

    ``settings`` are dotted names in CommonParams; versions differ, so the first one that exists is set. A flag
    whose conversion is one of :data:`values.ALONE` takes no value; one with ``bare`` may go
    without, and then means that.
    """

    flags: str
    settings: str
    convert: v.Convert
    help: str
    bare: str | None = None
    metavar: str = "N"

    @property
    def names(self) -> list[str]:
        """The flag's names."""
        return self.flags.split()

    @property
    def takes_value(self) -> bool:
        """Whether something must or may follow it."""
        return self.convert not in v.ALONE

    def apply(self, module: Any, params: Any, text: str) -> None:
        """Set it. Raises CommandError for a wrong value, and when this xllamacpp has no such setting."""
        flag = self.names[-1]
        for path in self.settings.split():
            *owners, name = path.split(".")
            owner = params
            for each in owners:
                owner = getattr(owner, each, None)
            if hasattr(owner, name):
                try:
                    setattr(owner, name, self.convert(module, getattr(owner, name), text))
                except (ValueError, OverflowError, TypeError) as error:
                    raise CommandError(f"{flag}: {error}") from None
                return
        raise CommandError(f"{flag} is not known to xllamacpp {module.__version__}")


_FILE, _TEXT, _NUMBER, _LIST = "FILE", "TEXT", "X", "A,B"

OPTIONS: tuple[Option, ...] = (
    # what to serve
    Option(
        "-m --model", "model.path", v.string, "the GGUF file (of several parts: the first)", metavar=_FILE
    ),
    Option("-a --alias", "model_alias", v.names, "name of the model in the API", metavar=_LIST),
    Option(
        "-mm --mmproj", "mmproj.path", v.existing_file, "the projector of a multimodal model", metavar=_FILE
    ),
    Option("--no-mmproj", "no_mmproj", v.true, "use no projector"),
    Option("--no-mmproj-offload", "mmproj_use_gpu", v.false, "keep the projector on the CPU"),
    Option("--image-min-tokens", "image_min_tokens", v.integer, "least tokens of an image"),
    Option("--image-max-tokens", "image_max_tokens", v.integer, "most tokens of an image"),
    Option("--lora", "lora_adapters", v.lora, "LoRA adapters; may be given again", metavar=_FILE),
    Option("--lora-scaled", "lora_adapters", v.lora_scaled, "the same with a scale", metavar="FILE:SCALE"),
    Option(
        "--lora-init-without-apply", "lora_init_without_apply", v.true, "load adapters without using them"
    ),
    # where to listen
    Option("--host", "hostnames hostname", v.names, "address to listen on (127.0.0.1)", metavar="ADDRESS"),
    Option("--port", "port", v.integer, "port to listen on (8080)"),
    Option("--api-prefix", "api_prefix", v.string, "path before all others", metavar="PATH"),
    Option("--api-key", "api_keys", v.more_names, "keys that requests must show", metavar=_LIST),
    Option("--api-key-file", "api_keys", v.names_of_file, "a file with such keys, one a line", metavar=_FILE),
    Option("--ssl-key-file", "ssl_file_key", v.existing_file, "TLS key", metavar=_FILE),
    Option("--ssl-cert-file", "ssl_file_cert", v.existing_file, "TLS certificate", metavar=_FILE),
    Option("--threads-http", "n_threads_http", v.integer, "threads that answer HTTP"),
    Option("-to --timeout", "timeout_read", v.integer, "seconds a client may take to send"),
    Option("--metrics", "endpoint_metrics", v.true, "offer /metrics"),
    Option("--props", "endpoint_props", v.true, "let /props be written"),
    Option("--slots", "endpoint_slots", v.true, "offer /slots"),
    Option("--no-slots", "endpoint_slots", v.false, "do not"),
    Option("--ui --webui", "ui webui", v.true, "offer llama.cpp's web page"),
    Option("--no-ui --no-webui", "ui webui", v.false, "do not (the default here)"),
    # memory and speed
    Option("-c --ctx-size", "n_ctx", v.integer, "tokens of context of all slots together (0: the model's)"),
    Option("-np --parallel", "n_parallel", v.integer, "slots: requests answered at a time (1)"),
    Option("-kvu --kv-unified", "kv_unified", v.true, "one context shared by all slots"),
    Option("-no-kvu --no-kv-unified", "kv_unified", v.false, "a share of the context for each slot"),
    Option("-b --batch-size", "n_batch", v.integer, "tokens of a logical batch (2048)"),
    Option("-ub --ubatch-size", "n_ubatch", v.integer, "tokens computed at a time (512)"),
    Option("-t --threads", "cpuparams.n_threads", v.integer, "threads that generate"),
    Option("-tb --threads-batch", "cpuparams_batch.n_threads", v.integer, "threads that read prompts"),
    Option("-fa --flash-attn", "flash_attn_type flash_attn", v.flash_attention, "on, off or auto", bare="on"),
    Option("-ctk --cache-type-k", "cache_type_k", v.cache_type, "type of cached keys (f16)", metavar="TYPE"),
    Option(
        "-ctv --cache-type-v", "cache_type_v", v.cache_type, "type of cached values (f16)", metavar="TYPE"
    ),
    Option(
        "-cram --cache-ram", "cache_ram_mib", v.integer, "MiB of RAM for kept prompts (256; -1: no limit)"
    ),
    Option("--cache-prompt", "cache_prompt", v.true, "reuse what prompts have in common (the default)"),
    Option("--no-cache-prompt", "cache_prompt", v.false, "do not"),
    Option("--cache-reuse", "n_cache_reuse", v.integer, "least size of a shifted part to reuse"),
    Option("-sps --slot-prompt-similarity", "slot_prompt_similarity", v.number, "how alike", metavar=_NUMBER),
    Option("--slot-save-path", "slot_save_path", v.string, "where slots may be saved", metavar="PATH"),
    Option("--swa-full", "swa_full", v.true, "a full cache for sliding windows"),
    Option("--context-shift", "ctx_shift", v.true, "drop the oldest tokens when the context is full"),
    Option("--no-context-shift", "ctx_shift", v.false, "do not"),
    Option("-cb --cont-batching", "cont_batching", v.true, "mix new requests into running ones"),
    Option("-nocb --no-cont-batching", "cont_batching", v.false, "do not"),
    Option("--mlock", "use_mlock load_mode", v.memory_lock, "keep the model from being swapped out"),
    Option("--no-mmap", "use_mmap load_mode", v.no_memory_map, "read the model instead of mapping it"),
    Option(
        "-lm --load-mode",
        "load_mode",
        v.one_of("llama_load_mode", "LLAMA_LOAD_MODE_"),
        "how to",
        metavar="MODE",
    ),
    Option(
        "--numa", "numa", v.one_of("ggml_numa_strategy", "GGML_NUMA_STRATEGY_"), "strategy", metavar="HOW"
    ),
    Option("--no-repack", "no_extra_bufts", v.true, "keep weights as they are in the file"),
    Option("--check-tensors", "check_tensors", v.true, "look for invalid values in the model"),
    Option("--no-warmup", "warmup", v.false, "no empty run after loading"),
    Option("--warmup", "warmup", v.true, "do it (the default)"),
    Option("--sleep-idle-seconds", "sleep_idle_seconds", v.integer, "unload after so long without a request"),
    # GPUs
    Option(
        "-ngl --n-gpu-layers --gpu-layers",
        "n_gpu_layers",
        v.gpu_layers,
        "layers on GPUs: a number, auto or all",
    ),
    Option(
        "-sm --split-mode", "split_mode", v.one_of("llama_split_mode", "LLAMA_SPLIT_MODE_"), "how to split"
    ),
    Option("-ts --tensor-split", "tensor_split", v.shares, "a share for each GPU", metavar=_LIST),
    Option("-mg --main-gpu", "main_gpu", v.integer, "the GPU that does what is not split"),
    Option("-fit --fit", "fit_params", v.switch, "adjust unset parameters to free memory", metavar="on|off"),
    Option("-nkvo --no-kv-offload", "no_kv_offload", v.true, "keep the context in RAM"),
    Option("--no-op-offload", "no_op_offload", v.true, "keep operations on RAM's tensors there"),
    Option("-ot --override-tensor", "tensor_buft_overrides", v.string, "PATTERN=BUFFER,…", metavar=_TEXT),
    # embeddings and reranking
    Option("--embedding --embeddings", "embedding", v.true, "serve embeddings"),
    Option(
        "--pooling",
        "pooling_type",
        v.one_of("llama_pooling_type", "LLAMA_POOLING_TYPE_"),
        "none, mean, cls, …",
    ),
    Option("--embd-normalize", "embd_normalize", v.integer, "norm of embeddings (2: Euclidean)"),
    # chat
    Option("--jinja", "use_jinja", v.true, "use the model's own chat template (the default)"),
    Option("--no-jinja", "use_jinja", v.false, "use llama.cpp's built-in ones"),
    Option("--chat-template", "chat_template", v.string, "a template, or the name of one", metavar=_TEXT),
    Option("--chat-template-file", "chat_template", v.file_content, "a file with a template", metavar=_FILE),
    Option(
        "--chat-template-kwargs",
        "default_template_kwargs",
        v.template_values,
        "values for it",
        metavar="JSON",
    ),
    Option(
        "--reasoning-format",
        "reasoning_format",
        v.one_of(
            "common_reasoning_format", "COMMON_REASONING_FORMAT_", **{"deepseek-legacy": "deepseek_legacy"}
        ),
        "none, auto, deepseek, …",
    ),
    Option(
        "--reasoning-budget",
        "sampling.reasoning_budget_tokens reasoning_budget",
        v.integer,
        "most tokens of thought (-1: no limit)",
    ),
    # defaults for requests that say nothing
    Option("-n --predict --n-predict", "n_predict", v.integer, "most tokens of an answer (-1: no limit)"),
    Option("--keep", "n_keep", v.integer, "tokens of the prompt that a shift keeps"),
    Option("-s --seed", "sampling.seed", v.integer, "random seed"),
    Option("--temp --temperature", "sampling.temp", v.number, "temperature", metavar=_NUMBER),
    Option("--top-k", "sampling.top_k", v.integer, "top-k"),
    Option("--top-p", "sampling.top_p", v.number, "top-p", metavar=_NUMBER),
    Option("--min-p", "sampling.min_p", v.number, "min-p", metavar=_NUMBER),
    Option("--repeat-last-n", "sampling.penalty_last_n", v.integer, "tokens that count as repeated"),
    Option("--repeat-penalty", "sampling.penalty_repeat", v.number, "penalty for them", metavar=_NUMBER),
    Option(
        "--presence-penalty", "sampling.penalty_present", v.number, "penalty for presence", metavar=_NUMBER
    ),
    Option(
        "--frequency-penalty", "sampling.penalty_freq", v.number, "penalty for frequency", metavar=_NUMBER
    ),
    # longer contexts than trained
    Option(
        "--rope-scaling",
        "rope_scaling_type",
        v.one_of("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_"),
        "how",
    ),
    Option("--rope-scale", "rope_freq_scale", v.inverse, "factor of the context's length", metavar=_NUMBER),
    Option("--rope-freq-base", "rope_freq_base", v.number, "base frequency", metavar=_NUMBER),
    Option("--rope-freq-scale", "rope_freq_scale", v.number, "1 / that factor", metavar=_NUMBER),
    Option("--yarn-orig-ctx", "yarn_orig_ctx", v.integer, "context the model was trained with"),
    Option("--yarn-ext-factor", "yarn_ext_factor", v.number, "YaRN's mix", metavar=_NUMBER),
    Option("--yarn-attn-factor", "yarn_attn_factor", v.number, "YaRN's attention", metavar=_NUMBER),
    Option("--yarn-beta-slow", "yarn_beta_slow", v.number, "YaRN's alpha", metavar=_NUMBER),
    Option("--yarn-beta-fast", "yarn_beta_fast", v.number, "YaRN's beta", metavar=_NUMBER),
    # a small model that guesses ahead
    Option(
        "-md --model-draft",
        "speculative.draft.mparams.path",
        v.existing_file,
        "the small model",
        metavar=_FILE,
    ),
    Option(
        "--spec-type",
        "speculative.types",
        v.speculation,
        "how to guess: draft-simple (the default with a small model), ngram-simple, …",
        metavar=_LIST,
    ),
    Option("--draft-max", "speculative.draft.n_max", v.integer, "most tokens guessed"),
    Option("--draft-min", "speculative.draft.n_min", v.integer, "least tokens guessed"),
    Option("--draft-p-min", "speculative.draft.p_min", v.number, "least probability", metavar=_NUMBER),
    Option("-ngld --gpu-layers-draft", "speculative.draft.n_gpu_layers", v.gpu_layers, "its layers on GPUs"),
    # logging
    Option("-lv --log-verbosity --verbosity", "verbosity", v.integer, "how much to log (3)"),
)
