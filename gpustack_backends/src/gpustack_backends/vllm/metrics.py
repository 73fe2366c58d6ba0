"""vLLM's metrics in GPUStack's names. Older versions have some of them under another name."""

from __future__ import annotations

_SAME = (
    *("num_requests_running", "num_requests_waiting", "num_requests_swapped"),
    *("request_prompt_tokens", "request_generation_tokens", "request_params_n", "request_params_max_tokens"),
    *("time_to_first_token_seconds", "time_per_output_token_seconds", "inter_token_latency_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "request_prefill_kv_computed_tokens"),
)
#: Counters, which are called ``…_total`` where they are read.
_COUNTERS = {
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
    "prompt_tokens": "prompt_tokens",
    "prompt_tokens_cached": "prompt_tokens_cached",
    "generation_tokens": "generation_tokens",
    "request_success": "request_success",
    "num_preemptions": "request_preemptions",
    "spec_decode_num_accepted_tokens": "spec_decode_accepted_tokens",
    "spec_decode_num_draft_tokens": "spec_decode_draft_tokens",
}
METRICS = {
    **{f"vllm:{name}": name for name in _SAME},
    **{f"vllm:{name}_total": ours for name, ours in _COUNTERS.items()},
    "vllm:request_time_per_output_token_seconds": "time_per_output_token_seconds",
    "vllm:kv_cache_usage_perc": "kv_cache_usage_ratio",
    "vllm:gpu_cache_usage_perc": "kv_cache_usage_ratio",
    "vllm:spec_decode_draft_acceptance_rate": "spec_decode_accept_rate",
}
