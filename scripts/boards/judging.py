"""The Judging dashboard: throughput, remaining work, failures and grade distribution."""

from typing import Any

from boards.panels import (
    GRADES,
    IN_ITERATION,
    IN_NAMESPACE,
    IN_RUN,
    ITERATION,
    NAMESPACE,
    NEUTRAL,
    OUTCOMES,
    PER_SECOND,
    Query,
    bar_chart,
    bar_gauge,
    budget_used,
    build_dashboard,
    higher_is_better,
    higher_is_worse,
    rate,
    shares,
    stat_panel,
    time_left,
    time_series,
    variable,
)

JUDGE = f'{IN_ITERATION}, stage="judge"'


def judging() -> Any:
    """Build the Judging dashboard."""
    judged_rate = f'run:pyrite_judge_pairs:rate5m{{{IN_ITERATION}, outcome="judged"}}'
    speed = f"sum({judged_rate})"
    pairs, seconds = "pyrite_judge_pairs_total", time_left(IN_ITERATION)
    servers = f"count(count by (namespace, pod) (vllm:num_requests_running{{{IN_NAMESPACE}}}))"
    # Only runs that are judging now: other runs cost money too, but judge nothing.
    cost_rate = f"max by (namespace, run) (deriv(pyrite_run_cost_dollars{{{IN_RUN}}}[10m]))"
    dollars_per_second = f"sum({cost_rate} and on (namespace, run) {judged_rate})"
    prompt, cached = (f"pyrite_llm_{name}_tokens_total" for name in ("prompt", "cached"))
    missing, limit = f'{pairs}{{{JUDGE}, outcome="missing"}}', f"pyrite_judge_missing_pairs_limit{{{JUDGE}}}"
    pod = "max by (namespace, run, iteration, pod)"
    budget = f"max({pod} ({missing}) / ({pod} ({limit}) > 0))"

    def with_outcome(outcomes: str) -> str:
        return f'sum({pairs}{{{JUDGE}, outcome=~"{outcomes}"}})'

    selected, done = f"sum(pyrite_step_units{{{JUDGE}}})", f"(sum(pyrite_step_units_done{{{JUDGE}}}) > 0)"
    window = f"{with_outcome('not_selected')} / ({with_outcome('not_selected')} + {selected} > 0)"
    no_request = f"1 - (1 - {window}) * {with_outcome('judged|missing')} / {done}"
    rows = {
        "Now": [
            stat_panel(
                "Pairs judged per second",
                "Pairs that the LLM graded per second, all workers, averaged over 5 minutes. Excludes cached pairs.",
                PER_SECOND,
                Query(speed),
                NEUTRAL,
                decimals=1,
            ),
            stat_panel(
                "Time left",
                "Estimated time until the current iteration is judged, at the speed of the last 10 minutes. Assumes "
                "that pending shards are as large as the running ones. Empty while there is no progress.",
                "s",
                Query(seconds),
                NEUTRAL,
            ),
            stat_panel(
                "Estimated end",
                "When judging of the current iteration ends, at the speed of the last 10 minutes.",
                "dateTimeAsLocalNoDateIfToday",
                Query(f"(time() + {seconds}) * 1000"),
                NEUTRAL,
            ),
            stat_panel(
                "Pairs judged in total",
                "Pairs that the LLM graded in all iterations, including the current one. Worker counts older than 7 "
                "days are not included. Excludes cached pairs.",
                "short",
                Query(f"sum(run:pyrite_judge_pairs:judged{{{IN_ITERATION}}})"),
                NEUTRAL,
            ),
            stat_panel(
                "Pairs/s per server",
                "Pairs judged per second, divided by the number of vLLM servers. With one GPU per server this is the "
                "speed per GPU. Empty if no vLLM server is scraped.",
                PER_SECOND,
                Query(f"{speed} / ({servers} > 0)"),
                NEUTRAL,
            ),
            stat_panel(
                "Pairs per dollar",
                "Pairs judged per second, divided by the cost per second (cost.dollarsPerHour) of the runs that are "
                "judging. Empty if no price is set.",
                "short",
                Query(f"{speed} / ({dollars_per_second} > 0)"),
                NEUTRAL,
                decimals=0,
            ),
            stat_panel(
                "Pairs not sent to the LLM",
                "Share of pairs that cost nothing so far: excluded by rank, cached, or skipped. A panel below shows "
                "each reason.",
                "percentunit",
                Query(no_request),
                NEUTRAL,
                decimals=0,
            ),
            stat_panel(
                "Prompt tokens cached",
                "Share of prompt tokens found in vLLM's prefix cache. Below a third, the pairs of a query do not "
                "reach the same server or the cache is too small, and judging is slower than necessary.",
                "percentunit",
                Query(f"{rate(cached, JUDGE)} / ({rate(prompt, JUDGE)} > 0)"),
                higher_is_better(0.2, 0.35),
                decimals=0,
            ),
            stat_panel(
                "Failure budget used",
                "Missing pairs divided by judge.max_missing, for the shard with the highest share. A shard fails when "
                "it exceeds 100%.",
                "percentunit",
                Query(budget),
                higher_is_worse(0.5, 1),
                decimals=0,
            ),
            stat_panel(
                "Most frequent grade",
                "Share of the most frequent grade in the last 30 minutes. Above 95% an alert fires, because uniform "
                "grades provide no training signal.",
                "percentunit",
                Query(f"max(run:pyrite_judge_grades:share30m{{{IN_ITERATION}}})"),
                higher_is_worse(0.9, 0.95),
                decimals=0,
            ),
            stat_panel(
                "Servers in use",
                "Share of servers that receive requests. Below 100%, a worker's circuit breaker is open because a "
                "server failed.",
                "percentunit",
                Query(f"avg(pyrite_llm_server_up{{{JUDGE}}})"),
                higher_is_better(0.5, 1),
                decimals=0,
            ),
            stat_panel(
                "Cost budget used",
                "Cost divided by cost.budgetDollars, for the run with the highest share. Empty if no price or no "
                "budget is set.",
                "percentunit",
                Query(budget_used(IN_RUN)),
                higher_is_worse(0.8, 1),
                decimals=0,
            ),
        ],
        "Throughput": [
            time_series(
                "Pairs judged per second, by worker",
                "Each worker judges one shard. The lines are stacked, so the top is the total. A worker that drops to "
                "zero while others continue is waiting for its server or has finished.",
                PER_SECOND,
                Query(rate(pairs, f'{JUDGE}, outcome="judged"', "shard"), "shard {{shard}}"),
                thresholds=NEUTRAL,
                stacked=True,
                legend="names",
            ),
            time_series(
                "Requests completed per second, by server",
                "Requests that each vLLM pod completed, excluding aborted ones. The load should be even: all pairs of "
                "a query use one server, and queries are distributed over all servers.",
                PER_SECOND,
                Query(
                    rate("vllm:request_success_total", f'{IN_NAMESPACE}, finished_reason!="abort"', "pod"), "{{pod}}"
                ),
                thresholds=NEUTRAL,
                stacked=True,
                legend="list",
            ),
            time_series(
                "Request duration",
                "Time from sending a request to the complete response, measured by workers, excluding retries. "
                "Workers cancel a request after resources.judge_timeout (usually 60 seconds).",
                "s",
                *[
                    Query(f"max(run:pyrite_llm_request_seconds:{p}_5m{{{IN_ITERATION}}})", p.rstrip("_"))
                    for p in ("p50", "p95", "p99")
                ],
                thresholds=higher_is_worse(10, 60),
                width=8,
            ),
            time_series(
                "Requests in flight and their limit",
                "All workers and servers. The limit rises while a server keeps up and is halved when it is busy. If "
                "the requests in flight stay well below the limit, the workers are the bottleneck: raise "
                "judge.parallelism.",
                "none",
                Query(f"sum(pyrite_llm_requests_in_flight{{{JUDGE}}})", "in flight"),
                Query(f"sum(pyrite_llm_concurrency_limit{{{JUDGE}}})", "limit"),
                thresholds=NEUTRAL,
                width=8,
                dashed="limit",
            ),
            time_series(
                "Prompt tokens per second",
                "Computed tokens cost GPU time; cached tokens are nearly free.",
                PER_SECOND,
                Query(f"{rate(prompt, JUDGE)} - {rate(cached, JUDGE)}", "computed"),
                Query(rate(cached, JUDGE), "cached"),
                thresholds=NEUTRAL,
                width=8,
                stacked=True,
            ),
        ],
        "Failures": [
            time_series(
                "Failed requests per second, by reason",
                "Requests are retried until their pair has no attempts left. busy: the server asks for a lower rate; "
                "timeout: the server is too slow; connection, cut: the server cannot be reached or closed the "
                "connection; garbled, unparsable: the response is not a grade.",
                PER_SECOND,
                Query(rate("pyrite_llm_request_failures_total", JUDGE, "reason"), "{{reason}}"),
                thresholds=higher_is_worse(0.5, 2),
                width=8,
                stacked=True,
                legend="names",
            ),
            time_series(
                "Workers that use each server",
                "Share of workers that send requests to the server. Below 100%, the circuit breaker of some workers "
                "is open because the server failed.",
                "percentunit",
                Query(f"avg by (server) (pyrite_llm_server_up{{{JUDGE}}})", "{{server}}"),
                thresholds=higher_is_better(0.5, 1),
                width=8,
                maximum=1,
                legend="names",
            ),
            time_series(
                "Missing pairs and truncated passages",
                "Missing pairs have no attempts left. The reason is that of the last failure, or window: the query "
                "alone fills the LLM's context window. Truncated passages did not fit the context window; the judge "
                "saw only their beginning.",
                "short",
                Query(
                    f"sum by (reason) (pyrite_judge_missing_pairs_total{{{JUDGE}}}) or on () {with_outcome('missing')}",
                    "missing {{reason}}",
                ),
                Query(f"sum(pyrite_judge_truncated_passages_total{{{JUDGE}}})", "truncated"),
                thresholds=NEUTRAL,
                width=8,
                legend="list",
            ),
        ],
        "Grades": [
            time_series(
                "Grade distribution, last 30 minutes",
                "1 is irrelevant, 4 answers the query. An alert fires if one grade exceeds 95%. The distribution "
                "changes slowly as queries differ; a sudden jump means that a server's behavior changed.",
                "percentunit",
                Query(f"avg by (grade) (run:pyrite_judge_grades:share30m{{{IN_ITERATION}}})", "grade {{grade}}"),
                thresholds=NEUTRAL,
                stacked=True,
                maximum=1,
                legend="list",
                colors={f"grade {grade}": color for grade, color in GRADES.items()},
            ),
            bar_chart(
                "Grade distribution, by iteration",
                "For the current iteration, the grades so far. As the model learns, it ranks better passages higher, "
                "so grades rise slowly. A large change between iterations is drift: a different model or prompt under "
                "the same name.",
                "percentunit",
                Query(shares(f"run:pyrite_judge_grades:sum{{{IN_RUN}}}", "grade")),
                "grade",
                GRADES,
                maximum=1,
                decimals=0,
            ),
        ],
        "Totals": [
            time_series(
                "Pairs by outcome",
                "Counted by the running workers. The count of a worker ends with its pod.",
                "short",
                Query(f"sum by (outcome) ({pairs}{{{JUDGE}}})", "{{outcome}}"),
                thresholds=NEUTRAL,
                stacked=True,
                legend="list",
                colors=OUTCOMES,
            ),
            bar_gauge(
                "Pairs not sent to the LLM, by reason",
                "window: share of all pairs that are excluded by rank (judge.rank_window). Of the other "
                "pairs so far: cache, judged before; patience, skipped because the query's last candidates were "
                "irrelevant (judge.patience).",
                "percentunit",
                Query(window, "window"),
                Query(f"{with_outcome('cached')} / {done}", "cache"),
                Query(f"{with_outcome('skipped')} / {done}", "patience"),
                maximum=1,
            ),
            bar_chart(
                "Pairs of finished iterations, by outcome",
                "not_selected: excluded by rank (judge.rank_window); skipped: judge.patience; cached: "
                "judged before. These three cost nothing.",
                "percentunit",
                Query(shares(f"pyrite_run_pairs{{{IN_RUN}}}", "outcome")),
                "outcome",
                OUTCOMES,
                maximum=1,
                decimals=0,
            ),
            time_series(
                "Cost",
                "Hours of the run's steps, including the running step, times cost.dollarsPerHour. Dashed: the budget "
                "of the run.",
                "currencyUSD",
                Query(f"max by (run) (pyrite_run_cost_dollars{{{IN_RUN}}})", "{{run}}"),
                Query(f"max by (run) (pyrite_run_cost_budget_dollars{{{IN_RUN}}})", "{{run}}: budget"),
                thresholds=NEUTRAL,
                dashed="budget",
            ),
        ],
    }
    runs = variable("run", "Run", f"pyrite_run_phase{{{IN_NAMESPACE}}}")
    description = "Judging speed, remaining time, failures and grade distribution."
    return build_dashboard("Pyrite / Judging", "pyrite-judging", description, [NAMESPACE, runs, ITERATION], rows)
