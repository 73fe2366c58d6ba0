"""SGLang's metrics in GPUStack's names. Older versions have some of them under another name."""

from __future__ import annotations

METRICS = {
    "sglang:num_running_reqs": "num_requests_running",
    "sglang:num_queue_reqs": "num_requests_waiting",
    "sglang:num_retracted_reqs": "num_requests_swapped",
    "sglang:token_usage": "kv_cache_usage_ratio",
    "sglang:cache_hit_rate": "prefix_cache_hit_rate",
    "sglang:prompt_tokens_total": "prompt_tokens",
    "sglang:cached_tokens_total": "prompt_tokens_cached",
    "sglang:generation_tokens_total": "generation_tokens",
    "sglang:prompt_tokens_histogram": "request_prompt_tokens",
    "sglang:generation_tokens_histogram": "request_generation_tokens",
    "sglang:num_requests_total": "request_success",
    "sglang:num_retracted_requests_total": "request_preemptions",
    "sglang:time_to_first_token_seconds": "time_to_first_token_seconds",
    "sglang:request_time_per_output_token_seconds": "time_per_output_token_seconds",
    "sglang:time_per_output_token_seconds": "time_per_output_token_seconds",
    "sglang:inter_token_latency_seconds": "inter_token_latency_seconds",
    "sglang:e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "sglang:queue_time_seconds": "request_queue_time_seconds",
    "sglang:spec_accept_rate": "spec_decode_accept_rate",
    "sglang:spec_num_draft_tokens": "spec_decode_draft_tokens",
}
