"""The Run dashboard: progress, quality and cost of one run."""

from typing import Any

from boards.panels import (
    AMBER,
    EXAMPLES,
    GRADES,
    GREEN,
    GREY,
    HARD_PASSAGES,
    IN_NAMESPACE,
    ITERATION,
    MODELS,
    NAMESPACE,
    NEUTRAL,
    OUTCOMES,
    RED,
    Query,
    bar_chart,
    bar_gauge,
    budget_used,
    build_dashboard,
    gpu_panels,
    higher_is_better,
    higher_is_worse,
    name_panel,
    quantiles,
    rate,
    shares,
    stat_panel,
    time_left,
    time_series,
    variable,
)


def run() -> Any:
    """Build the Run dashboard."""
    this_run = f'{IN_NAMESPACE}, run="$run"'
    selected = f'{this_run}, iteration=~"$iteration"'
    ended = f"(max(pyrite_run_finished_timestamp_seconds{{{this_run}}}) or vector(time()))"
    best, base = (f'max(pyrite_run_validation_mrr{{{this_run}, model="{model}"}})' for model in ("best", "base"))
    base_or_tuned = f'{this_run}, model=~"base|tuned"'
    by_unit = "sum by (stage, iteration, unit)"
    units_done, units = f"pyrite_step_units_done{{{this_run}}}", f"pyrite_step_units{{{this_run}}}"
    step_progress = f"{by_unit} ({units_done}) / ({by_unit} ({units}) > 0)"
    training = f'{selected}, stage="finetune"'
    sync, controller = "pyrite_controller_sync_seconds", f'{IN_NAMESPACE}, component="controller"'
    phase_colors = {"Succeeded": GREEN, "Failed": RED, "Running": "blue", "Waiting": AMBER, "Suspended": AMBER}
    phase_colors |= {"Pending": "light-blue", "Cancelled": GREY, "Probed": "blue"}
    hard = " or ".join(
        f'label_replace(pyrite_run_hard_{role}{{{selected}}}, "type", "{role}", "", "")'
        for role in ("positives", "negatives")
    )
    rows = {
        "Overview": [
            name_panel(
                "Phase",
                "Waiting: for the vLLM server or for GPUs. `kubectl get trainingruns` shows the reason.",
                Query(f"max by (phase) (pyrite_run_phase{{{this_run}}}) == 1", "{{phase}}"),
                phase_colors,
            ),
            stat_panel(
                "Steps done",
                "Share of the run's steps that are finished. Each shard is one step. Steps differ widely in duration.",
                "percentunit",
                Query(f"max(pyrite_run_steps_done{{{this_run}}}) / (max(pyrite_run_steps{{{this_run}}}) > 0)"),
                NEUTRAL,
                decimals=0,
            ),
            stat_panel(
                "Elapsed time",
                "From the start of the run until now, or until its end. Includes waiting and suspension.",
                "s",
                Query(f"{ended} - max(pyrite_run_started_timestamp_seconds{{{this_run}}})"),
                NEUTRAL,
            ),
            stat_panel(
                "Judging: time left",
                "For the current iteration, at the speed of the last 10 minutes. Empty if no iteration is being "
                "judged.",
                "s",
                Query(time_left(this_run)),
                NEUTRAL,
            ),
            stat_panel(
                "Judging: estimated end",
                "When judging of the current iteration ends, at the speed of the last 10 minutes.",
                "dateTimeAsLocalNoDateIfToday",
                Query(f"(time() + {time_left(this_run)}) * 1000"),
                NEUTRAL,
            ),
            stat_panel(
                "Pairs judged in total",
                "Pairs that the LLM graded in all iterations, including the current one. Excludes cached pairs.",
                "short",
                Query(f"sum(run:pyrite_judge_pairs:judged{{{this_run}}})"),
                NEUTRAL,
            ),
            stat_panel(
                "Cost",
                "Hours in which the run had pods or needed the vLLM server, times cost.dollarsPerHour. Empty without a "
                "price.",
                "currencyUSD",
                Query(f"max(pyrite_run_cost_dollars{{{this_run}}})"),
                NEUTRAL,
                decimals=2,
            ),
            stat_panel(
                "Cost budget used",
                "Cost divided by cost.budgetDollars. Empty if no price or no budget is set.",
                "percentunit",
                Query(budget_used(this_run)),
                higher_is_worse(0.8, 1),
                decimals=0,
            ),
            stat_panel(
                "MRR@5 on validation",
                "Best model so far: mean reciprocal rank of the first relevant passage. 1 means that it always ranks "
                "first.",
                "none",
                Query(best),
                NEUTRAL,
                decimals=3,
            ),
            stat_panel(
                "Gain on validation",
                "MRR@5 of the best model so far, relative to the base model. The final result is measured on the test "
                "set; see the report.",
                "percentunit",
                Query(f"{best} / ({base} > 0) - 1"),
                higher_is_better(0, 0.15),
                decimals=0,
            ),
            name_panel(
                "Gate",
                "Whether the gain on the test set meets evaluate.gate. Known when the run has ended.",
                Query(
                    f'label_replace(max(pyrite_run_gate_passed{{{this_run}}}) == 1, "gate", "passed", "", "") or '
                    f'label_replace(max(pyrite_run_gate_passed{{{this_run}}}) == 0, "gate", "not passed", "", "") or '
                    'on () label_replace(vector(1), "gate", "unknown", "", "")',
                    "{{gate}}",
                ),
                {"passed": GREEN, "not passed": RED},
            ),
            stat_panel(
                "Current step",
                "Share of the current step's work that is done, all shards together.",
                "percentunit",
                Query(f"max({step_progress})"),
                NEUTRAL,
                decimals=0,
            ),
        ],
        "Model quality": [
            bar_chart(
                "MRR@5 on validation, by iteration",
                "Mean reciprocal rank of the first relevant passage. 1 means that it always ranks first. Iteration 0 "
                "is the base model.",
                "none",
                Query(f"max by (model, iteration) (pyrite_run_validation_mrr{{{base_or_tuned}}})"),
                "model",
                MODELS,
                width=8,
                maximum=1,
                decimals=3,
            ),
            bar_chart(
                "DCG@5 on validation, by iteration",
                "Discounted cumulative gain: how relevant the first five passages are. Higher ranks count more.",
                "none",
                Query(f"max by (model, iteration) (pyrite_run_validation_dcg{{{base_or_tuned}}})"),
                "model",
                MODELS,
                width=8,
                decimals=3,
            ),
            time_series(
                "Training loss",
                "During training, the mean of the last few steps. It should fall and level off. Values of different "
                "loss functions are not comparable.",
                "none",
                Query(f"max by (iteration) (pyrite_finetune_loss{{{training}}})", "iteration {{iteration}}"),
                Query(f"max by (iteration) (pyrite_run_training_loss{{{selected}}})", "iteration {{iteration}}, final"),
                thresholds=NEUTRAL,
                width=8,
                legend="list",
                dashed="final",
            ),
        ],
        "Training data": [
            bar_chart(
                "Training examples, by iteration",
                "hard: the model and the judge disagree; easy: they agree, included to prevent forgetting; "
                "accumulated: reused from earlier iterations; title_pairs: titles and their passages. Fewer hard "
                "examples in each iteration show that the model learns.",
                "short",
                Query(f"max by (iteration, type) (pyrite_run_examples{{{selected}}})"),
                "type",
                EXAMPLES,
            ),
            bar_chart(
                "Hard positives and negatives, by iteration",
                "positives: relevant passages that rank below an irrelevant one; negatives: the irrelevant passages "
                "ranked above them that are used in examples.",
                "short",
                Query(f"max by (iteration, type) ({hard})"),
                "type",
                HARD_PASSAGES,
            ),
            bar_chart(
                "Grade distribution, by iteration",
                "Share of each grade among an iteration's judgments. For the current iteration, the grades so far. A "
                "large change between iterations is drift.",
                "percentunit",
                Query(shares(f"run:pyrite_judge_grades:sum{{{selected}}}", "grade")),
                "grade",
                GRADES,
                maximum=1,
                decimals=0,
            ),
            bar_chart(
                "Pairs by outcome, by iteration",
                "judged pairs cost LLM requests. cached (judged before), skipped (patience) and not_selected (rank) "
                "pairs do not. missing pairs have no grade.",
                "short",
                Query(f"max by (iteration, outcome) (pyrite_run_pairs{{{selected}}})"),
                "outcome",
                OUTCOMES,
            ),
        ],
        "Time": [
            bar_gauge(
                "Duration of finished stages",
                "Time during which at least one shard was running, summed over iterations. Excludes waiting for a "
                "server and failed attempts.",
                "s",
                Query(
                    f"sort_desc(sum by (stage) (max by (stage, iteration) (pyrite_run_stage_seconds{{{this_run}}})))",
                    "{{stage}}",
                ),
            ),
            time_series(
                "Progress of the current step",
                "Share of the work that is done, for all shards that have started. A stage can report several units "
                "one after the other.",
                "percentunit",
                Query(step_progress, "{{stage}} {{iteration}}: {{unit}}"),
                thresholds=NEUTRAL,
                maximum=1,
                legend="names",
            ),
        ],
        "GPUs of this run's pods": gpu_panels("$run-.+"),
        "Controller": [
            time_series(
                "Sync duration",
                "The controller checks all runs every few seconds. A sync that takes seconds means that the store or "
                "the API server is slow.",
                "s",
                *quantiles(sync, controller),
                width=8,
                thresholds=higher_is_worse(5, 10),
            ),
            time_series(
                "Errors per minute, by type",
                "Each error except unreadable_run is a failed sync, which is retried. If all syncs fail, an alert "
                "fires. unreadable_run: the stored results of a run could not be read. The controller's log gives the "
                "cause.",
                "none",
                Query(f"60 * {rate('pyrite_controller_errors_total', controller, 'error_type')}", "{{error_type}}"),
                Query(f"60 * {rate(f'{sync}_count', controller)}", "all syncs"),
                width=8,
                thresholds=higher_is_worse(1, 10),
                legend="names",
                dashed="all syncs",
            ),
            time_series(
                "Runs by phase",
                "All TrainingRuns in the namespace.",
                "none",
                Query(
                    f"sum by (phase) (max by (namespace, phase) (pyrite_controller_runs{{{IN_NAMESPACE}}}))",
                    "{{phase}}",
                ),
                thresholds=NEUTRAL,
                width=8,
                legend="names",
                colors=phase_colors,
            ),
        ],
    }
    runs = variable("run", "Run", f"pyrite_run_phase{{{IN_NAMESPACE}}}", multi=False)
    description = "Progress, model quality and cost of one run."
    return build_dashboard("Pyrite / Run", "pyrite-run", description, [NAMESPACE, runs, ITERATION], rows)
