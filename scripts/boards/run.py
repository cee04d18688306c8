"""The story of one run."""

from typing import Any

from boards.parts import (
    AMBER,
    EXAMPLES,
    GRADES,
    GREEN,
    GREY,
    HARD,
    ITERATION,
    MODELS,
    NAMESPACE,
    NEUTRAL,
    OUTCOMES,
    RED,
    SPACE,
    Query,
    bars,
    better,
    budget_used,
    columns,
    made,
    number,
    over_time,
    quantiles,
    rate,
    shares,
    time_left,
    variable,
    words,
    worse,
)


def run() -> Any:
    """The story of one run."""
    mine = f'{SPACE}, run="$run"'
    part = f'{mine}, iteration=~"$iteration"'
    ended = f"(max(pyrite_run_finished_timestamp_seconds{{{mine}}}) or vector(time()))"
    best, base = (f'max(pyrite_run_validation_mrr{{{mine}, model="{model}"}})' for model in ("best", "base"))
    training = f'{part}, stage="finetune"'
    tried = f'{mine}, model=~"base|tuned"'
    work = "sum by (stage, iteration, unit)"
    step = f"{work} (pyrite_step_units_done{{{mine}}}) / ({work} (pyrite_step_units{{{mine}}}) > 0)"
    turn, labels = "pyrite_controller_sync_seconds", f'{SPACE}, component="controller"'
    colors = {"Succeeded": GREEN, "Failed": RED, "Running": "blue", "Waiting": AMBER, "Suspended": AMBER}
    colors |= {"Pending": "light-blue", "Cancelled": GREY}
    rows = {
        "At a glance": [
            words(
                "Phase",
                "Waiting: for the vLLM server or for GPUs. kubectl get trainingruns says why, in words.",
                Query(f"max by (phase) (pyrite_run_phase{{{mine}}}) == 1", "{{phase}}"),
                colors,
            ),
            number(
                "Steps done",
                "Of all steps of the run, each shard counting as one. Steps differ widely in length.",
                "percentunit",
                Query(f"max(pyrite_run_steps_done{{{mine}}}) / (max(pyrite_run_steps{{{mine}}}) > 0)"),
                NEUTRAL,
                decimals=0,
            ),
            number(
                "Since it began",
                "To now, or to its end; waiting and suspension count.",
                "s",
                Query(f"{ended} - max(pyrite_run_started_timestamp_seconds{{{mine}}})"),
                NEUTRAL,
            ),
            number(
                "Judging: time left",
                "For the iteration that is being judged, at the speed of the last 10 minutes. Empty while none is.",
                "s",
                Query(time_left(mine)),
                NEUTRAL,
            ),
            number(
                "Judging: done at",
                "When judging of this iteration will end, if it goes on like this.",
                "dateTimeAsLocalNoDateIfToday",
                Query(f"(time() + {time_left(mine)}) * 1000"),
                NEUTRAL,
            ),
            number(
                "Pairs judged so far",
                "Pairs that the LLM graded, in all iterations, the one that is being judged too. Pairs known already "
                "are not among them.",
                "short",
                Query(f"sum(run:pyrite_judge_pairs:judged{{{mine}}})"),
                NEUTRAL,
            ),
            number(
                "Dollars",
                "Hours of its steps, the running one too, times cost.dollarsPerHour; tries that failed do not count. "
                "Empty where no price is set.",
                "currencyUSD",
                Query(f"max(pyrite_run_cost_dollars{{{mine}}})"),
                NEUTRAL,
                decimals=2,
            ),
            number(
                "Dollar budget used",
                "Cost so far against cost.budgetDollars. Empty where there is no price or no budget.",
                "percentunit",
                Query(budget_used(mine)),
                worse(0.8, 1),
                decimals=0,
            ),
            number(
                "MRR@5 on validation",
                "Of the best model so far: how high the first relevant passage ranks; 1 is always first.",
                "none",
                Query(best),
                NEUTRAL,
                decimals=3,
            ),
            number(
                "Gain on validation",
                "MRR@5 of the best model so far against the base model's. The final verdict is on test, in the report.",
                "percentunit",
                Query(f"{best} / ({base} > 0) - 1"),
                better(0, 0.15),
                decimals=0,
            ),
            words(
                "Gate",
                "Whether the gain on test meets evaluate.gate. Known once the run has ended.",
                Query(
                    f'label_replace(max(pyrite_run_gate_passed{{{mine}}}) == 1, "gate", "passed", "", "") or '
                    f'label_replace(max(pyrite_run_gate_passed{{{mine}}}) == 0, "gate", "not passed", "", "") or '
                    'on () label_replace(vector(1), "gate", "not known", "", "")',
                    "{{gate}}",
                ),
                {"passed": GREEN, "not passed": RED},
            ),
            number(
                "Running step",
                "Work done of all work, of the step that runs, its shards together.",
                "percentunit",
                Query(f"max({step})"),
                NEUTRAL,
                decimals=0,
            ),
        ],
        "Is the model getting better?": [
            columns(
                "MRR@5 on validation, by iteration",
                "How high the first relevant passage ranks: 1 is always first. Iteration 0 is the base model.",
                "none",
                Query(f"max by (model, iteration) (pyrite_run_validation_mrr{{{tried}}})"),
                "model",
                MODELS,
                width=8,
                most=1,
                decimals=3,
            ),
            columns(
                "DCG@5 on validation, by iteration",
                "How much of what is relevant is among the first five, the first ones counting most.",
                "none",
                Query(f"max by (model, iteration) (pyrite_run_validation_dcg{{{tried}}})"),
                "model",
                MODELS,
                width=8,
                decimals=3,
            ),
            over_time(
                "Training loss",
                "While an iteration trains, mean of the last few steps. It should fall and level off; values of "
                "different losses do not compare.",
                "none",
                Query(f"max by (iteration) (pyrite_finetune_loss{{{training}}})", "iteration {{iteration}}"),
                Query(
                    f"max by (iteration) (pyrite_run_training_loss{{{part}}})", "iteration {{iteration}}, at its end"
                ),
                steps=NEUTRAL,
                width=8,
                legend="list",
                dashed="at its end",
            ),
        ],
        "What was found to learn from": [
            columns(
                "Examples, by iteration",
                "hard: the model and the judge disagree; easy: they agree, mixed in against forgetting; accumulated: "
                "from iterations before. Fewer hard ones each time is what learning looks like.",
                "short",
                Query(f"max by (iteration, kind) (pyrite_run_examples{{{part}}})"),
                "kind",
                EXAMPLES,
            ),
            columns(
                "Hard positives and negatives, by iteration",
                "What hard examples are made of. positive: passages that answer a question and that another outranks "
                "which does not; negative: those others, as far as examples hold them.",
                "short",
                Query(f"max by (iteration, kind) (pyrite_run_hard_pairs{{{part}}})"),
                "kind",
                HARD,
            ),
            columns(
                "Grades, by iteration",
                "Share of each grade among an iteration's judgments; of the one that is being judged, those so far. A "
                "large change between iterations is drift.",
                "percentunit",
                Query(shares(f"run:pyrite_judge_grades:sum{{{part}}}", "grade")),
                "grade",
                GRADES,
                most=1,
                decimals=0,
            ),
            columns(
                "Pairs, by iteration",
                "judged ones cost; kept (known already), skipped (patience) and not_selected (rank) ones do not; missing "
                "ones got no grade.",
                "short",
                Query(f"max by (iteration, outcome) (pyrite_run_pairs{{{part}}})"),
                "outcome",
                OUTCOMES,
            ),
        ],
        "Where the time goes": [
            bars(
                "Time of finished stages",
                "Time in which they were at work, all iterations together, shards side by side counting once. Waiting "
                "for a server, and tries that failed, do not count.",
                "s",
                Query(
                    f"sort_desc(sum by (stage) (max by (stage, iteration) (pyrite_run_stage_seconds{{{mine}}})))",
                    "{{stage}}",
                ),
            ),
            over_time(
                "How far the running step is",
                "Work done of all work, of the shards that run or have run together. A stage may count several things "
                "one after the other.",
                "percentunit",
                Query(step, "{{stage}} {{iteration}}: {{unit}}"),
                steps=NEUTRAL,
                most=1,
                legend="names",
            ),
        ],
        "The controller": [
            over_time(
                "Time of a turn",
                "Each few seconds it looks at all runs. Seconds mean a slow store or a slow API server.",
                "s",
                *quantiles(turn, labels),
                width=8,
                steps=worse(5, 10),
            ),
            over_time(
                "Errors per minute, by kind",
                "Each but unreadable is of a turn that failed and was tried again; as many as there are turns are an "
                "alert. unreadable: what the store holds of a run cannot be shown. The log says why.",
                "none",
                Query(f"60 * {rate('pyrite_controller_errors_total', labels, 'kind')}", "{{kind}}"),
                Query(f"60 * {rate(f'{turn}_count', labels)}", "all turns"),
                width=8,
                steps=worse(1, 10),
                legend="names",
                dashed="all turns",
            ),
            over_time(
                "Runs, by phase",
                "All TrainingRuns of the namespace.",
                "none",
                Query(f"sum by (phase) (max by (namespace, phase) (pyrite_controller_runs{{{SPACE}}}))", "{{phase}}"),
                steps=NEUTRAL,
                width=8,
                legend="names",
                colors=colors,
            ),
        ],
    }
    one = variable("run", "Run", f"pyrite_run_phase{{{SPACE}}}", every=False)
    about = "One run from beginning to end: how far, how good, how expensive."
    return made("Pyrite / Run", "pyrite-run", about, [NAMESPACE, one, ITERATION], rows)
