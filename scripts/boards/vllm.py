"""The vLLM dashboard: the judge servers, from vLLM's own metrics."""

from typing import Any

from boards.panels import (
    IN_NAMESPACE,
    NAMESPACE,
    NEUTRAL,
    PER_SECOND,
    Query,
    build_dashboard,
    gpu_panels,
    higher_is_better,
    higher_is_worse,
    quantiles,
    rate,
    stat_panel,
    time_series,
    variable,
)

VLLM = f'{IN_NAMESPACE}, pod=~"$pod"'


def vllm() -> Any:
    """Build the vLLM dashboard."""
    ready, desired = (
        f'max by (namespace) (pyrite_server_replicas{{{IN_NAMESPACE}, state="{state}"}})'
        for state in ("ready", "desired")
    )
    hits, lookups = (f"vllm:prefix_cache_{name}_total" for name in ("hits", "queries"))
    hit_rate = f"{rate(hits, VLLM, 'pod')} / ({rate(lookups, VLLM, 'pod')} > 0)"
    rows = {
        "Now": [
            stat_panel(
                "Servers ready",
                "vLLM pods that are ready. The controller scales the server to zero when no run is judging.",
                "none",
                Query(f"sum({ready})"),
                NEUTRAL,
            ),
            stat_panel(
                "Servers not ready",
                "Desired replicas that are not ready. If this lasts, check for a free GPU and read the log of the "
                "starting pod.",
                "none",
                Query(f"sum({desired} - {ready})"),
                higher_is_worse(1, 2),
            ),
            stat_panel(
                "Requests running",
                "Requests in execution, all servers.",
                "none",
                Query(f"sum(vllm:num_requests_running{{{VLLM}}})"),
                NEUTRAL,
            ),
            stat_panel(
                "Requests waiting",
                "Requests in vLLM's queue. A few keep the GPU busy; hundreds only make each request slower.",
                "none",
                Query(f"sum(vllm:num_requests_waiting{{{VLLM}}})"),
                higher_is_worse(100, 500),
            ),
            stat_panel(
                "KV cache used",
                "For the fullest server. Near 100%, requests are preempted and computed again.",
                "percentunit",
                Query(f"max(vllm:kv_cache_usage_perc{{{VLLM}}})"),
                higher_is_worse(0.9, 0.98),
                decimals=0,
            ),
            stat_panel(
                "Prefix cache hits",
                "Share of prompt tokens found in the prefix cache, all servers.",
                "percentunit",
                Query(f"{rate(hits, VLLM)} / ({rate(lookups, VLLM)} > 0)"),
                higher_is_better(0.2, 0.35),
                decimals=0,
            ),
        ],
        "Load": [
            time_series(
                "Requests running, by server",
                "If requests run at the limit and some wait, the GPU is well used. If servers differ much, their "
                "queries differ in size, or one server has a problem.",
                "none",
                Query(f"sum by (pod) (vllm:num_requests_running{{{VLLM}}})", "{{pod}}"),
                thresholds=NEUTRAL,
                stacked=True,
                legend="list",
            ),
            time_series(
                "Requests waiting, by server",
                "If no request waits while workers wait for responses, the concurrency limit is too low. If more "
                "requests wait than run, it is too high.",
                "none",
                Query(f"sum by (pod) (vllm:num_requests_waiting{{{VLLM}}})", "{{pod}}"),
                thresholds=higher_is_worse(100, 500),
                stacked=True,
                legend="list",
            ),
            time_series(
                "Tokens per second",
                "Nearly all the work is prompt tokens: a judgment is one generated token.",
                PER_SECOND,
                Query(rate("vllm:prompt_tokens_total", VLLM), "prompt"),
                Query(rate("vllm:generation_tokens_total", VLLM), "generated"),
                thresholds=NEUTRAL,
            ),
            time_series(
                "Requests finished per second, by reason",
                "length and stop are normal: a judgment is one token. abort: the worker cancelled the request.",
                PER_SECOND,
                Query(rate("vllm:request_success_total", VLLM, "finished_reason"), "{{finished_reason}}"),
                thresholds=NEUTRAL,
                legend="list",
            ),
        ],
        "Latency": [
            time_series(
                "Time to first token",
                "For a judgment, this is nearly the complete request.",
                "s",
                *quantiles("vllm:time_to_first_token_seconds", VLLM),
                thresholds=higher_is_worse(10, 60),
                width=8,
            ),
            time_series(
                "Request duration",
                "From arrival at the server to completion. Workers also measure the network.",
                "s",
                *quantiles("vllm:e2e_request_latency_seconds", VLLM),
                thresholds=higher_is_worse(10, 60),
                width=8,
            ),
            time_series(
                "Queue time",
                "Time that a request waits before execution. If it is most of the request's duration, the concurrency "
                "limit is too high.",
                "s",
                *quantiles("vllm:request_queue_time_seconds", VLLM),
                thresholds=higher_is_worse(5, 30),
                width=8,
            ),
        ],
        "Memory": [
            time_series(
                "KV cache used",
                "By server. The cache holds running prompts and reusable prefixes.",
                "percentunit",
                Query(f"max by (pod) (vllm:kv_cache_usage_perc{{{VLLM}}})", "{{pod}}"),
                width=8,
                maximum=1,
                legend="list",
                thresholds=higher_is_worse(0.9, 0.98),
            ),
            time_series(
                "Prefix cache hits",
                "By server. All pairs of a query share a prefix, so the rate is high if they reach the same server.",
                "percentunit",
                Query(hit_rate, "{{pod}}"),
                thresholds=higher_is_better(0.2, 0.35),
                width=8,
                maximum=1,
                legend="list",
            ),
            time_series(
                "Preemptions per second",
                "A preempted request is computed again. Lower resources.judge_concurrency or add GPU memory.",
                PER_SECOND,
                Query(rate("vllm:num_preemptions_total", VLLM), "preempted"),
                thresholds=higher_is_worse(0.1, 1),
                width=8,
            ),
        ],
        "GPUs": gpu_panels("$pod"),
    }
    pods = variable("pod", "Server", f"vllm:num_requests_running{{{IN_NAMESPACE}}}")
    description = "Load, latency and memory of the judge's vLLM servers."
    return build_dashboard("Pyrite / vLLM", "pyrite-vllm", description, [NAMESPACE, pods], rows)
