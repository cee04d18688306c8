"""The judge's servers, by their own metrics."""

from typing import Any

from boards.parts import (
    NAMESPACE,
    NEUTRAL,
    PER_SECOND,
    SPACE,
    Query,
    better,
    made,
    number,
    over_time,
    quantiles,
    rate,
    variable,
    worse,
)

VLLM = f'{SPACE}, pod=~"$pod"'


def vllm() -> Any:
    """The judge's server, by its own metrics."""
    ready, wanted = (
        f'max by (namespace) (pyrite_server_replicas{{{SPACE}, state="{state}"}})' for state in ("ready", "wanted")
    )
    hits, asked = (f"vllm:prefix_cache_{kind}_total" for kind in ("hits", "queries"))
    hit_rate = f"{rate(hits, VLLM, 'pod')} / ({rate(asked, VLLM, 'pod')} > 0)"
    rows = {
        "Now": [
            number(
                "Servers ready",
                "vLLM pods that answer. The controller wants none while nobody judges.",
                "none",
                Query(f"sum({ready})"),
                NEUTRAL,
            ),
            number(
                "Servers not ready",
                "Of those that are wanted. For long: look for a free GPU, or at the log of the pod that starts.",
                "none",
                Query(f"sum({wanted} - {ready})"),
                worse(1, 2),
            ),
            number(
                "Requests running",
                "In execution, all servers together.",
                "none",
                Query(f"sum(vllm:num_requests_running{{{VLLM}}})"),
                NEUTRAL,
            ),
            number(
                "Requests waiting",
                "Queued inside vLLM. A few keep the GPU busy; hundreds only make each request slower.",
                "none",
                Query(f"sum(vllm:num_requests_waiting{{{VLLM}}})"),
                worse(100, 500),
            ),
            number(
                "KV cache used",
                "Of the fullest server. Near 100% requests are preempted and computed again.",
                "percentunit",
                Query(f"max(vllm:kv_cache_usage_perc{{{VLLM}}})"),
                worse(0.9, 0.98),
                decimals=0,
            ),
            number(
                "Prefix cache hits",
                "Share of prompt tokens that were in the cache, all servers together.",
                "percentunit",
                Query(f"{rate(hits, VLLM)} / ({rate(asked, VLLM)} > 0)"),
                better(0.2, 0.35),
                decimals=0,
            ),
        ],
        "Load": [
            over_time(
                "Requests running, by server",
                "At its ceiling with some waiting is a GPU well used; servers that differ much get queries of "
                "different size, or one of them is sick.",
                "none",
                Query(f"sum by (pod) (vllm:num_requests_running{{{VLLM}}})", "{{pod}}"),
                steps=NEUTRAL,
                stacked=True,
                legend="list",
            ),
            over_time(
                "Requests waiting, by server",
                "None, while others wait for answers: the workers ask for too little. More than run: for too much.",
                "none",
                Query(f"sum by (pod) (vllm:num_requests_waiting{{{VLLM}}})", "{{pod}}"),
                steps=worse(100, 500),
                stacked=True,
                legend="list",
            ),
            over_time(
                "Tokens per second",
                "Prompt tokens are nearly all the work: a judgment is one token.",
                PER_SECOND,
                Query(rate("vllm:prompt_tokens_total", VLLM), "prompt"),
                Query(rate("vllm:generation_tokens_total", VLLM), "generated"),
                steps=NEUTRAL,
            ),
            over_time(
                "Requests ended per second, by reason",
                "length or stop is well: a judgment is one token. abort: the worker gave up waiting.",
                PER_SECOND,
                Query(rate("vllm:request_success_total", VLLM, "finished_reason"), "{{finished_reason}}"),
                steps=NEUTRAL,
                legend="list",
            ),
        ],
        "Time": [
            over_time(
                "Time to the first token",
                "For a judgment, about the whole request.",
                "s",
                *quantiles("vllm:time_to_first_token_seconds", VLLM),
                steps=worse(10, 60),
                width=8,
            ),
            over_time(
                "Time of a whole request",
                "From its arrival at the server to its end. Workers see the network on top.",
                "s",
                *quantiles("vllm:e2e_request_latency_seconds", VLLM),
                steps=worse(10, 60),
                width=8,
            ),
            over_time(
                "Time in the queue",
                "Time in which a request only waits. If it is most of the whole, workers ask for too much.",
                "s",
                *quantiles("vllm:request_queue_time_seconds", VLLM),
                steps=worse(5, 30),
                width=8,
            ),
        ],
        "Memory": [
            over_time(
                "KV cache used",
                "By server; it holds prompts being computed and prefixes that may be used again.",
                "percentunit",
                Query(f"max by (pod) (vllm:kv_cache_usage_perc{{{VLLM}}})", "{{pod}}"),
                width=8,
                most=1,
                legend="list",
                steps=worse(0.9, 0.98),
            ),
            over_time(
                "Prefix cache hits",
                "By server. All pairs of a query share a prefix, so a server that others' queries reach too hits less.",
                "percentunit",
                Query(hit_rate, "{{pod}}"),
                steps=better(0.2, 0.35),
                width=8,
                most=1,
                legend="list",
            ),
            over_time(
                "Preemptions per second",
                "A preempted request is computed again: lower resources.judge_concurrency or give more memory.",
                PER_SECOND,
                Query(rate("vllm:num_preemptions_total", VLLM), "preempted"),
                steps=worse(0.1, 1),
                width=8,
            ),
        ],
    }
    pods = variable("pod", "Server", f"vllm:num_requests_running{{{SPACE}}}")
    about = "The judge's vLLM servers: load, speed, memory."
    return made("Pyrite / vLLM", "pyrite-vllm", about, [NAMESPACE, pods], rows)
