"""Throughput, what is left, and whether the grades can be believed."""

from typing import Any

from boards.parts import (
    AT,
    GRADES,
    ITERATION,
    NAMESPACE,
    NEUTRAL,
    OUTCOMES,
    PER_SECOND,
    RUN,
    SPACE,
    Query,
    bars,
    better,
    budget_used,
    columns,
    made,
    number,
    over_time,
    rate,
    shares,
    time_left,
    variable,
    worse,
)

JUDGE = f'{AT}, stage="judge"'


def judging() -> Any:
    """Throughput, what is left, and whether the grades can be believed."""
    each = f'run:pyrite_judge_pairs:rate5m{{{AT}, outcome="judged"}}'
    speed = f"sum({each})"
    pairs, seconds = "pyrite_judge_pairs_total", time_left(AT)
    servers = f"count(count by (namespace, pod) (vllm:num_requests_running{{{SPACE}}}))"
    # Of runs that judge now alone: others cost too, and judge nothing.
    dollars = (
        f"sum(max by (namespace, run) (deriv(pyrite_run_cost_dollars{{{RUN}}}[10m])) and on (namespace, run) {each})"
    )
    prompt, cached = (f"pyrite_llm_{kind}_tokens_total" for kind in ("prompt", "cached"))
    missing, limit = f'{pairs}{{{JUDGE}, outcome="missing"}}', f"pyrite_judge_missing_pairs_limit{{{JUDGE}}}"
    pod = "max by (namespace, run, iteration, pod)"
    budget = f"max({pod} ({missing}) / ({pod} ({limit}) > 0))"

    def became(outcomes: str) -> str:
        return f'sum({pairs}{{{JUDGE}, outcome=~"{outcomes}"}})'

    chosen, done = f"sum(pyrite_step_units{{{JUDGE}}})", f"(sum(pyrite_step_units_done{{{JUDGE}}}) > 0)"
    window = f"{became('not_selected')} / ({became('not_selected')} + {chosen} > 0)"
    free = f"1 - (1 - {window}) * {became('judged|missing')} / {done}"
    rows = {
        "Now": [
            number(
                "Pairs judged per second",
                "Pairs that the LLM graded, over the last 5 minutes, all workers together. Pairs known already are not "
                "among them.",
                PER_SECOND,
                Query(speed),
                NEUTRAL,
                decimals=1,
            ),
            number(
                "Time left",
                "For the iteration that is being judged, at the speed of the last 10 minutes. Shards that have not "
                "begun are taken to be as large as the others. Empty while nothing moves.",
                "s",
                Query(seconds),
                NEUTRAL,
            ),
            number(
                "Done at",
                "When judging will end, if it goes on like this.",
                "dateTimeAsLocalNoDateIfToday",
                Query(f"(time() + {seconds}) * 1000"),
                NEUTRAL,
            ),
            number(
                "Pairs judged so far",
                "Pairs that the LLM graded, of finished iterations and of the one that is being judged, as far as the "
                "last 7 days. Pairs known already are not among them.",
                "short",
                Query(f"sum(run:pyrite_judge_pairs:judged{{{AT}}})"),
                NEUTRAL,
            ),
            number(
                "Pairs/s per server",
                "Pairs judged per second over the vLLM servers that are there; on a GPU each, that is per GPU. Empty "
                "where the judge is none of them.",
                PER_SECOND,
                Query(f"{speed} / ({servers} > 0)"),
                NEUTRAL,
            ),
            number(
                "Pairs per dollar",
                "Pairs judged per second over what the runs that judge cost per second (cost.dollarsPerHour). Empty "
                "where no price is set.",
                "short",
                Query(f"{speed} / ({dollars} > 0)"),
                NEUTRAL,
                decimals=0,
            ),
            number(
                "Pairs not asked about",
                "Share of pairs that cost nothing, as far as judging has come: ruled out by rank, known already, or "
                "passed over. Below it is said which.",
                "percentunit",
                Query(free),
                NEUTRAL,
                decimals=0,
            ),
            number(
                "Prompt tokens cached",
                "Share of prompt tokens that vLLM had in its prefix cache, over 5 minutes. Below a third, pairs of a "
                "query do not meet the same server, or the cache is too small; the judge is then slower than need be.",
                "percentunit",
                Query(f"{rate(cached, JUDGE)} / ({rate(prompt, JUDGE)} > 0)"),
                better(0.2, 0.35),
                decimals=0,
            ),
            number(
                "Failure budget used",
                "Pairs without a grade against judge.max_missing, in the shard that is worst off. At 100% it fails.",
                "percentunit",
                Query(budget),
                worse(0.5, 1),
                decimals=0,
            ),
            number(
                "Most frequent grade",
                "Its share of the last 30 minutes. Above 95% it is an alert: nothing can be learned from grades that "
                "are all the same.",
                "percentunit",
                Query(f"max(run:pyrite_judge_grades:share30m{{{AT}}})"),
                worse(0.9, 0.95),
                decimals=0,
            ),
            number(
                "Servers that are asked",
                "Below 100% some worker has set a server aside, as it failed it.",
                "percentunit",
                Query(f"avg(pyrite_llm_server_up{{{JUDGE}}})"),
                better(0.5, 1),
                decimals=0,
            ),
            number(
                "Dollar budget used",
                "Cost of the run that is worst off against cost.budgetDollars. Empty where there is no price or no "
                "budget.",
                "percentunit",
                Query(budget_used(RUN)),
                worse(0.8, 1),
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
                steps=NEUTRAL,
                stacked=True,
                legend="names",
            ),
            over_time(
                "Requests answered per second, by server",
                "What each vLLM pod finished, requests that workers gave up aside. They should be even: a query's "
                "pairs stay with one server, but queries are spread over all.",
                PER_SECOND,
                Query(rate("vllm:request_success_total", f'{SPACE}, finished_reason!="abort"', "pod"), "{{pod}}"),
                steps=NEUTRAL,
                stacked=True,
                legend="list",
            ),
            over_time(
                "Time of a request",
                "From sending to the whole answer, as workers see it, retries not counted. After "
                "resources.judge_timeout, mostly 60 seconds, a request is given up.",
                "s",
                *[
                    Query(f"max(run:pyrite_llm_request_seconds:{p}_5m{{{AT}}})", p.rstrip("_"))
                    for p in ("p50", "p95", "p99")
                ],
                steps=worse(10, 60),
                width=8,
            ),
            over_time(
                "Requests in flight, and their limit",
                "All workers and servers together. The limit grows while servers keep up; a server's halves when it is "
                "busy. In flight well below it: the workers are the bottleneck; raise judge.parallelism.",
                "none",
                Query(f"sum(pyrite_llm_requests_in_flight{{{JUDGE}}})", "in flight"),
                Query(f"sum(pyrite_llm_concurrency_limit{{{JUDGE}}})", "limit"),
                steps=NEUTRAL,
                width=8,
                dashed="limit",
            ),
            over_time(
                "Prompt tokens per second",
                "Computed ones cost GPU time; cached ones are nearly free.",
                PER_SECOND,
                Query(f"{rate(prompt, JUDGE)} - {rate(cached, JUDGE)}", "computed"),
                Query(rate(cached, JUDGE), "cached"),
                steps=NEUTRAL,
                width=8,
                stacked=True,
            ),
        ],
        "Faults": [
            over_time(
                "Failed requests per second, by reason",
                "They are sent again while their pair has tries left. busy: the server asks for less; timeout: it is "
                "too slow; connection, cut: it is gone; garbled, unparsable: it answers something else than a grade.",
                PER_SECOND,
                Query(rate("pyrite_llm_retries_total", JUDGE, "reason"), "{{reason}}"),
                steps=worse(0.5, 2),
                width=8,
                stacked=True,
                legend="names",
            ),
            over_time(
                "Workers that ask a server",
                "Their share; below 100% some have set it aside, as it failed them.",
                "percentunit",
                Query(f"avg by (server) (pyrite_llm_server_up{{{JUDGE}}})", "{{server}}"),
                steps=better(0.5, 1),
                width=8,
                most=1,
                legend="names",
            ),
            over_time(
                "Pairs without a grade, and passages cut",
                "Missing pairs have used up their tries; by what was wrong last, in the words of failed requests, or "
                "window: the query fills it. Cut passages did not fit the model's window and were judged by their "
                "beginning.",
                "short",
                Query(
                    f"sum by (reason) (pyrite_judge_missing_pairs_total{{{JUDGE}}}) or on () {became('missing')}",
                    "missing {{reason}}",
                ),
                Query(f"sum(pyrite_judge_truncated_passages_total{{{JUDGE}}})", "truncated"),
                steps=NEUTRAL,
                width=8,
                legend="list",
            ),
        ],
        "Grades": [
            over_time(
                "Share of each grade, last 30 minutes",
                "1 is irrelevant, 4 answers the question. One grade above 95% is an alert. It moves slowly as queries "
                "differ; a sudden jump means that a server began to answer differently.",
                "percentunit",
                Query(f"avg by (grade) (run:pyrite_judge_grades:share30m{{{AT}}})", "grade {{grade}}"),
                steps=NEUTRAL,
                stacked=True,
                most=1,
                legend="list",
                colors={f"grade {grade}": color for grade, color in GRADES.items()},
            ),
            columns(
                "Share of each grade, by iteration",
                "Of the one that is being judged, what its workers have graded so far. As the model learns, it ranks "
                "better passages high, so grades rise slowly. A large change from one iteration to the next is drift: "
                "another model or prompt behind the same name.",
                "percentunit",
                Query(shares(f"run:pyrite_judge_grades:sum{{{RUN}}}", "grade")),
                "grade",
                GRADES,
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
                steps=NEUTRAL,
                stacked=True,
                legend="list",
                colors=OUTCOMES,
            ),
            bars(
                "Pairs not asked about, by why",
                "window: share of all pairs that their rank rules out (judge.rank_window). Of the rest "
                "so far: cache, known from earlier judging; patience, passed over as the query had stopped finding "
                "anything (judge.patience).",
                "percentunit",
                Query(window, "window"),
                Query(f"{became('cached')} / {done}", "cache"),
                Query(f"{became('skipped')} / {done}", "patience"),
                most=1,
            ),
            columns(
                "Pairs of finished iterations",
                "All pairs of an iteration. not_selected: their rank can yield no example (judge.rank_window); "
                "skipped: judge.patience; kept: known already. These three cost nothing.",
                "percentunit",
                Query(shares(f"pyrite_run_pairs{{{RUN}}}", "outcome")),
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
                steps=NEUTRAL,
                dashed="may cost",
            ),
        ],
    }
    every = variable("run", "Run", f"pyrite_run_phase{{{SPACE}}}")
    about = "How fast pairs are judged, when it will be done, and whether the grades can be believed."
    return made("Pyrite / Judging", "pyrite-judging", about, [NAMESPACE, every, ITERATION], rows)
