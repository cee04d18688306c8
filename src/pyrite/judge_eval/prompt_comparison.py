"""Compares two prompts of an LLM judge on pairs with human grades: which one serves the model better?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyrite import judges
from pyrite.errors import UserError
from pyrite.evaluation import agreement
from pyrite.executors.step import Run
from pyrite.judge_eval.calibration import CalibrationSet, best_judgment, plain
from pyrite.judge_eval.common import judge_pairs
from pyrite.judges import Judgment, Pair, open_judge
from pyrite.judges.base import RELEVANT
from pyrite.judges.prompt import load_prompt
from pyrite.progress import Progress
from pyrite.spec import ConfiguredJudge, LlmJudgeSpec


def with_prompt(judge: ConfiguredJudge, prompt: str) -> ConfiguredJudge:
    """``judge`` with another ``prompt`` of the judge, for which its calibration was not fitted.

    Raises:
        UserError: the judge has no prompt, there is no such prompt, or it is the run's own.
    """
    if not isinstance(judge.spec, LlmJudgeSpec):
        raise UserError(
            f"--compare-prompt: {judge.section}.kind {judge.spec.kind} has no prompt. Use {judge.section}.kind=llm."
        )
    other = judge._replace(spec=judge.spec.model_copy(update={"prompt": prompt, "calibration": None}))
    if judges.fingerprint(other) == judges.fingerprint(judge):
        raise UserError(
            f"--compare-prompt: {prompt} is the run's own prompt ({judge.section}.prompt). Name another one."
        )
    return other


def compare_prompts(run: Run, other: ConfiguredJudge, graded: CalibrationSet, progress: Progress) -> dict[str, Any]:
    """Grade every pair with the prompt of ``other``, and compare it with the run's prompt, both without calibration.

    The scales of two prompts may differ, so the AUC of the expected grade decides, which does not depend on the scale.

    Returns:
        The content for the JSON file. ``enough``: whether there are enough pairs to tell. ``better``: the name of the
        better prompt; None if no difference is certain.

    Raises:
        UserError, PyriteError: as ``calibrate``.
    """
    both = (run.spec.main_judge, other)
    judged = [_judgments(run, judge, graded, progress) for judge in both]
    found = [(item, best_judgment(item, judged[0]), best_judgment(item, judged[1])) for item in graded.items]
    rows = [(item, one, two) for item, one, two in found if one and two]
    if not rows:
        raise UserError("no row of the graded file has a grade with both prompts. Check the judge's server.")
    clusters, truth = [item.query_id for item, _, _ in rows], _grades([item.truth for item, _, _ in rows])
    grades = _grades([one.grade for _, one, _ in rows]), _grades([two.grade for _, _, two in rows])
    expected = np.array([[each.expected for each in row[1:]] for row in rows], dtype=np.float64).T
    relevant = truth >= RELEVANT
    auc, auc_interval = agreement.auc_difference(expected[0], expected[1], relevant, clusters)
    kappa, kappa_interval = agreement.kappa_difference(truth, grades[0], grades[1], clusters, run.spec.seed)
    names = [judge.spec.identity["prompt"] for judge in both]
    # Without a difference in any pair, more pairs would probably show none.
    enough = agreement.can_tell(auc_interval, clusters) or (
        auc == 0 and agreement.enough(len(rows), len(set(clusters)))
    )
    better = None
    if enough:
        better = names[1] if auc_interval.low > 0 else names[0] if auc_interval.high < 0 else None
    prompts = [
        {
            "prompt": name,
            "form": load_prompt(name).form,
            "requests_per_pair": judges.requests_per_pair(judge),
            **_tokens(list(judgments.values())),
            "kappa": agreement.quadratic_kappa(truth, grade),
            "auc": agreement.auc(value, relevant, clusters).value,
            "spearman": agreement.spearman(value, truth.astype(np.float64)),
        }
        for name, judge, judgments, grade, value in zip(names, both, judged, grades, expected, strict=True)
    ]
    return plain(
        {
            "n": len(rows),
            "queries": len(set(clusters)),
            "prompts": prompts,
            "auc_difference": auc,
            "auc_difference_interval": auc_interval,
            "kappa_difference": kappa,
            "kappa_difference_interval": kappa_interval,
            "enough": enough,
            "better": better,
        }
    )


def _judgments(
    run: Run, configured: ConfiguredJudge, graded: CalibrationSet, progress: Progress
) -> Mapping[Pair, Judgment]:
    judge = open_judge(configured, graded.tables.queries, graded.tables.passages, graded.tables.qrels)
    return judge_pairs(run, judge, graded.pairs, progress).judgments


def _grades(values: list[int]) -> agreement.Grades:
    return np.array(values, dtype=np.int64)


def _tokens(judgments: list[Judgment]) -> dict[str, float]:
    """Mean prompt tokens per pair, and those of them that were not in the server's prefix cache."""
    count = max(1, len(judgments))
    prompt = sum(judgment.prompt_tokens for judgment in judgments)
    cached = sum(judgment.cached_tokens for judgment in judgments)
    return {"prompt_tokens_per_pair": prompt / count, "computed_tokens_per_pair": (prompt - cached) / count}
