"""The story of one run."""

from typing import Any

from boards.parts import (
    AMBER,
    EXAMPLES,
    GRADES,
    GREEN,
    ITERATION,
    MODELS,
    NAMESPACE,
    OUTCOMES,
    RED,
    SPACE,
    Query,
    bars,
    columns,
    made,
    number,
    over_time,
    quantiles,
    rate,
    variable,
    words,
)


def run() -> Any:
    """The story of one run."""
    mine = f'{SPACE}, run="$run"'
    part = f'{mine}, iteration=~"$iteration"'
    ended = f"(max(pyrite_run_finished_timestamp_seconds{{{mine}}}) or vector(time()))"
    best, base = (f'max(pyrite_run_validation_mrr{{{mine}, model="{model}"}})' for model in ("best", "base"))
    training = f'{part}, stage="finetune"'
    tried = f'{mine}, model=~"base|tuned"'
    shares = f"sum by (iteration, grade) (pyrite_run_grades{{{part}}}) / on (iteration) group_left () "
    of = "stage, iteration, unit"
    turn, labels = "pyrite_controller_turn_seconds", f'{SPACE}, component="controller"'
    colors = {"Succeeded": GREEN, "Failed": RED, "Running": "blue", "Waiting": AMBER, "Suspended": AMBER}
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
                Query(f"max(pyrite_run_steps_done{{{mine}}}) / max(pyrite_run_steps{{{mine}}})"),
                decimals=0,
            ),
            number(
                "Since it began",
                "To now, or to its end; waiting and suspension count.",
                "s",
                Query(f"{ended} - max(pyrite_run_started_timestamp_seconds{{{mine}}})"),
            ),
            number(
                "Dollars",
                "Hours of its steps, the running one too, times cost.dollarsPerHour. Empty where no price is set.",
                "currencyUSD",
                Query(f"max(pyrite_run_cost_dollars{{{mine}}})"),
                decimals=2,
            ),
            number(
                "Gain on validation",
                "MRR@5 of the best model so far against the base model's. The final verdict is on test, in the report.",
                "percentunit",
                Query(f"{best} / {base} - 1"),
                [(None, RED), (0, AMBER), (0.15, GREEN)],
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
        ],
        "Is the model getting better?": [
            columns(
                "MRR@5 on validation, by iteration",
                "How high the first relevant passage ranks: 1 is always first. Iteration 0 is the base model.",
                "none",
                Query(f"max by (model, iteration) (pyrite_run_validation_mrr{{{tried}}})"),
                "model",
                MODELS,
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
                width=8,
                legend="list",
                dashed="at its end",
            ),
        ],
        "What was found to learn from": [
            columns(
                "Examples, by iteration",
                "hard: the model and the judge disagree; easy: they agree, mixed in against forgetting; earlier: kept "
                "from iterations before. Fewer hard ones each time is what learning looks like.",
                "short",
                Query(f"max by (iteration, kind) (pyrite_run_examples{{{part}}})"),
                "kind",
                EXAMPLES,
            ),
            columns(
                "Grades, by iteration",
                "Share of each grade among an iteration's judgments. A large change between iterations is drift.",
                "percentunit",
                Query(f"{shares} sum by (iteration) (pyrite_run_grades{{{part}}})"),
                "grade",
                GRADES,
                most=1,
                decimals=0,
            ),
            columns(
                "Pairs, by iteration",
                "judged ones cost; kept (known already), skipped (patience) and not_chosen (rank) ones do not; missing "
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
                "Wall time, all iterations together, each from its first shard to its last; waiting for a server not "
                "counted.",
                "s",
                Query(
                    f"sort_desc(sum by (stage) (max by (stage, iteration) (pyrite_run_stage_seconds{{{mine}}})))",
                    "{{stage}}",
                ),
                width=12,
            ),
            over_time(
                "How far the running step is",
                "Work done of all work, of the shards that run or have run together. A stage may count several things "
                "one after the other.",
                "percentunit",
                Query(
                    f"sum by ({of}) (pyrite_step_work_done{{{mine}}}) / sum by ({of}) (pyrite_step_work{{{mine}}})",
                    "{{stage}} {{iteration}}: {{unit}}",
                ),
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
                steps=[(10, RED)],
            ),
            over_time(
                "Failed turns per minute, by kind",
                "Each is tried again; nothing is lost. Many in a row: its log says why.",
                "none",
                Query(f"60 * {rate('pyrite_controller_errors_total', SPACE, 'kind')}", "{{kind}}"),
                Query(f"60 * {rate(f'{turn}_count', labels)}", "all turns"),
                width=8,
                dashed="all turns",
            ),
            over_time(
                "Runs, by phase",
                "All TrainingRuns of the namespace.",
                "none",
                Query(f"sum by (phase) (pyrite_controller_runs{{{SPACE}}})", "{{phase}}"),
                width=8,
                legend="list",
                colors=colors,
            ),
        ],
    }
    one = variable("run", "Run", f"pyrite_run_phase{{{SPACE}}}", every=False)
    about = "One run from beginning to end: how far, how good, how expensive."
    return made("Pyrite / Run", "pyrite-run", about, [NAMESPACE, one, ITERATION], rows)
