"""Throughput, what is left, and whether the grades can be believed."""

from typing import Any

from boards.parts import (
    AMBER,
    AT,
    GRADES,
    GREEN,
    ITERATION,
    NAMESPACE,
    OUTCOMES,
    PER_SECOND,
    RED,
    RUN,
    SPACE,
    Query,
    columns,
    made,
    number,
    over_time,
    rate,
    variable,
)

JUDGE = f'{AT}, stage="judge"'


def judging() -> Any:
    """Throughput, what is left, and whether the grades can be believed."""
    speed = f'sum(run:pyrite_judge_pairs:rate5m{{{AT}, outcome="judged"}})'
    pairs, left = "pyrite_judge_pairs_total", f"sum(run:pyrite_judge_work_left:sum{{{AT}}})"
    seconds = f"{left} / (sum(run:pyrite_judge_work_done:rate10m{{{AT}}}) > 0)"
    known = f'sum({pairs}{{{JUDGE}, outcome=~"kept|skipped"}}) / sum({pairs}{{{JUDGE}}})'
    prompt, cached = (f"pyrite_llm_{kind}_tokens_total" for kind in ("prompt", "cached"))
    budget = (
        f'max({pairs}{{{JUDGE}, outcome="missing"}} / on (namespace, pod) pyrite_judge_missing_pairs_limit{{{JUDGE}}})'
    )
    share = "sum by ({0}) ({1}) / on (iteration) group_left () sum by (iteration) ({1})"
    before = share.format("iteration, grade", f"pyrite_run_grades{{{RUN}}}")
    chosen = share.format("iteration, outcome", f"pyrite_run_pairs{{{RUN}}}")
    rows = {
        "Now": [
            number(
                "Pairs judged per second",
                "Pairs that the LLM graded, over the last 5 minutes, all workers together. Pairs known already are not "
                "among them.",
                PER_SECOND,
                Query(speed),
                decimals=1,
            ),
            number(
                "Time left",
                "For the iteration that is being judged, at the speed of the last 10 minutes. Shards that have not "
                "begun are taken to be as large as the others. Empty while nothing moves.",
                "s",
                Query(seconds),
            ),
            number(
                "Done at",
                "When judging will end, if it goes on like this.",
                "dateTimeAsLocalNoDateIfToday",
                Query(f"(time() + {seconds}) * 1000"),
            ),
            number(
                "Pairs not asked about",
                "Share of pairs that cost nothing: known from the judgment cache (kept), or passed over because the "
                "query had stopped finding anything (skipped, judge.patience).",
                "percentunit",
                Query(known),
                decimals=0,
            ),
            number(
                "Prompt tokens cached",
                "Share of prompt tokens that vLLM had in its prefix cache, over 5 minutes. Below a third, pairs of a "
                "query do not meet the same server, or the cache is too small; the judge is then slower than need be.",
                "percentunit",
                Query(f"{rate(cached, JUDGE)} / {rate(prompt, JUDGE)}"),
                [(0, RED), (0.2, AMBER), (0.35, GREEN)],
                decimals=0,
            ),
            number(
                "Failure budget used",
                "Pairs without a grade against judge.max_missing, in the shard that is worst off. At 100% it fails.",
                "percentunit",
                Query(budget),
                [(0.5, AMBER), (1, RED)],
                decimals=0,
            ),
        ],
        "Throughput": [
            over_time(
                "Pairs judged per second, by worker",
                "A worker judges one shard. Stacked, so that the top is the total. One that falls to zero while others "
                "go on is waiting for its server, or has ended.",
                PER_SECOND,
                Query(rate(pairs, f'{JUDGE}, outcome="judged"', "shard"), "shard {{shard}}"),
                stacked=True,
                legend="names",
            ),
            over_time(
                "Requests answered per second, by server",
                "What each vLLM pod finished. They should be even: a query's pairs stay with one server, but queries "
                "are spread over all.",
                PER_SECOND,
                Query(rate("vllm:request_success_total", SPACE, "pod"), "{{pod}}"),
                stacked=True,
                legend="list",
            ),
            over_time(
                "Time of a request",
                "From sending to the whole answer, as workers see it, retries not counted.",
                "s",
                *[
                    Query(f"max(run:pyrite_llm_request_seconds:{p}_5m{{{AT}}})", p.rstrip("_"))
                    for p in ("p50", "p95", "p99")
                ],
                width=8,
            ),
            over_time(
                "Requests in flight, and their limit",
                "All workers and servers together. The limit grows while servers keep up; a server's halves when it is "
                "busy. In flight well below it: the workers are the bottleneck; raise judge.parallelism.",
                "none",
                Query(f"sum(pyrite_llm_requests_in_flight{{{JUDGE}}})", "in flight"),
                Query(f"sum(pyrite_llm_concurrency_limit{{{JUDGE}}})", "limit"),
                width=8,
                dashed="limit",
            ),
            over_time(
                "Prompt tokens per second",
                "Computed ones cost GPU time; cached ones are nearly free.",
                PER_SECOND,
                Query(f"{rate(prompt, JUDGE)} - {rate(cached, JUDGE)}", "computed"),
                Query(rate(cached, JUDGE), "cached"),
                width=8,
                stacked=True,
            ),
        ],
        "Faults": [
            over_time(
                "Retries per second, by reason",
                "Requests that failed and were sent again. busy: the server asks for less; timeout: it is too slow; "
                "connection, cut: it is gone; garbled, unparsable: it answers something else than a grade.",
                PER_SECOND,
                Query(rate("pyrite_llm_retries_total", JUDGE, "reason"), "{{reason}}"),
                width=8,
                stacked=True,
                legend="list",
            ),
            over_time(
                "Servers that are asked",
                "Share of workers that ask a server; below 100% some have set it aside, as it failed them.",
                "percentunit",
                Query(f"avg by (server) (pyrite_llm_server_up{{{JUDGE}}})", "{{server}}"),
                width=8,
                most=1,
                legend="names",
            ),
            over_time(
                "Pairs without a grade, and passages cut",
                "Missing pairs have used up their tries. Cut passages did not fit the model's window and were judged "
                "by their beginning.",
                "short",
                Query(f'sum({pairs}{{{JUDGE}, outcome="missing"}})', "missing"),
                Query(f"sum(pyrite_judge_cut_passages_total{{{JUDGE}}})", "cut"),
                width=8,
            ),
        ],
        "Grades": [
            over_time(
                "Share of each grade, last 30 minutes",
                "1 is irrelevant, 4 answers the question. One grade above 95% is an alert. It moves slowly as queries "
                "differ; a sudden jump means that a server began to answer differently.",
                "percentunit",
                Query(f"avg by (grade) (run:pyrite_judge_grades:share30m{{{AT}}})", "grade {{grade}}"),
                stacked=True,
                most=1,
                legend="list",
                colors={f"grade {grade}": color for grade, color in GRADES.items()},
            ),
            columns(
                "Share of each grade, by finished iteration",
                "As the model learns, it ranks better passages high, so grades rise slowly. A large change from one "
                "iteration to the next is drift: another model or prompt behind the same name.",
                "percentunit",
                Query(before),
                "grade",
                GRADES,
                width=12,
                most=1,
                decimals=0,
            ),
        ],
        "So far": [
            over_time(
                "Pairs, by what became of them",
                "Counted by the workers that are there; a worker that ends takes its count along.",
                "short",
                Query(f"sum by (outcome) ({pairs}{{{JUDGE}}})", "{{outcome}}"),
                width=8,
                stacked=True,
                legend="list",
                colors=OUTCOMES,
            ),
            columns(
                "Pairs of finished iterations",
                "All pairs of an iteration. not_chosen: their rank can yield no example (judge.rank_window, "
                "judge.sample); skipped: judge.patience; kept: known already. These three cost nothing.",
                "percentunit",
                Query(chosen),
                "outcome",
                OUTCOMES,
                most=1,
                decimals=0,
            ),
            over_time(
                "Dollars",
                "Hours of the run's steps, the running one too, times cost.dollarsPerHour; and what it may cost.",
                "currencyUSD",
                Query(f"max by (run) (pyrite_run_cost_dollars{{{RUN}}})", "{{run}}"),
                Query(f"max by (run) (pyrite_run_cost_budget_dollars{{{RUN}}})", "{{run}}: may cost"),
                width=8,
                dashed="may cost",
            ),
        ],
    }
    every = variable("run", "Run", f"pyrite_run_phase{{{SPACE}}}")
    about = "How fast pairs are judged, when it will be done, and whether the grades can be believed."
    return made("Pyrite / Judging", "pyrite-judging", about, [NAMESPACE, every, ITERATION], rows)
