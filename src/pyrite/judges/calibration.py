"""From what a judge gave to the grades that a run uses: the calibration, if there is one, and the check of scores.

The cache contains what the judge gave, so a judgment is paid for once, whatever the calibration. ``final`` and
``final_table`` are the only places where it becomes the judgment that patience, mining and the reports use.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyrite.errors import UserError
from pyrite.evaluation.isotonic import IsotonicMap, Values
from pyrite.judges.base import Judge, Judgment, Pair, short
from pyrite.spec import ConfiguredJudge, ServerJudgeSpec

_COMMAND = "`pyrite calibrate RUN_FILE GRADED_FILE`"


def _calibrate(section: str) -> str:
    """How to calibrate the judge of that section, as the end of an instruction."""
    if section != "judge.first":
        return _COMMAND
    return f"{_COMMAND} with the settings of judge.first as judge, and its servers as resources.judge_urls"


@dataclass(frozen=True)
class Calibration:
    """Maps a judge's raw values to expected grades on the scale of people, and these to grades.

    Attributes:
        judge: the fingerprint of the judge for which it was fitted.
        expected: from a raw value (``Judgment.raw``) to the expected grade, 1.0 to 4.0.
        cut_points: the grade is 1 plus the number of cut points below the expected grade.
    """

    judge: str
    expected: IsotonicMap
    cut_points: tuple[float, float, float]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Parse the JSON that ``pyrite calibrate`` writes. ``where``: the setting and the file, for errors.

        Raises:
            UserError: it has no calibration, or an invalid one.
        """
        try:
            return cls.of(json.loads(text))
        except json.JSONDecodeError:
            problem = "is not JSON"
        except ValueError as error:
            problem = str(error)
        raise UserError(f"{where} {problem}; {_COMMAND} writes such a file.")

    @classmethod
    def of(cls, content: Any) -> Self:
        """The calibration in the content of such a file. Raises ValueError: the problem, as the end of a sentence."""
        judge = content.get("judge") if isinstance(content, dict) else None
        fingerprint = judge.get("fingerprint") if isinstance(judge, dict) else None
        if not isinstance(fingerprint, str) or "calibration" not in content:
            raise ValueError("does not have the fingerprint of a judge and a calibration")
        if content["calibration"] is None:
            raise ValueError("has no calibration, because its pairs were too few or had all the same grade")
        try:
            x, y, cuts = (tuple(map(float, content["calibration"][name])) for name in ("x", "y", "cut_points"))
        except (ValueError, TypeError, KeyError, OverflowError):
            raise ValueError("has an invalid calibration: x, y and cut_points must be lists of numbers") from None
        try:
            expected = IsotonicMap(x, y)
        except ValueError as error:
            raise ValueError(f"has an invalid calibration: {error}") from None
        if y[0] < 1 or y[-1] > 4:
            raise ValueError("has an invalid calibration: y must be from 1 to 4")
        if len(cuts) != 3 or not np.isfinite(cuts).all() or list(cuts) != sorted(cuts):
            raise ValueError("has an invalid calibration: cut_points must be three increasing numbers")
        first, second, third = cuts
        return cls(fingerprint, expected, (first, second, third))

    @property
    def digest(self) -> str:
        """Hex digest of the content, which decides the grades."""
        content = [self.judge, self.expected.x, self.expected.y, self.cut_points]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __call__(self, raw: Values) -> tuple[Values, NDArray[np.int64]]:
        """The expected grades and the grades of ``raw`` values, all of shape (pairs,)."""
        # A value is the same whether it was cached, in 32 bits, or comes from the judge.
        expected = self.expected(np.asarray(raw, np.float32).astype(np.float64))
        return expected, 1 + np.searchsorted(self.cut_points, expected, side="left")


def read_calibration(path: str, setting: str = "judge.calibration") -> Calibration:
    """The calibration in the file at ``path``. ``setting`` is named in errors.

    Raises:
        UserError: it cannot be read, or has no valid calibration.
    """
    file = Path(path).expanduser().absolute()
    try:
        return Calibration.parse(file.read_text(encoding="utf-8"), f"{setting}: {file}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 (byte {error.start})"
        raise UserError(f"{setting}: {file} cannot be read: {reason}. Correct the path.") from None


def calibration_of(judge: ConfiguredJudge, fingerprint: str) -> Calibration | None:
    """The calibration that the settings of ``judge``, which has this ``fingerprint``, name; None if they name none.

    Raises:
        UserError: the calibration cannot be read, or was fitted for another judge.
    """
    spec, setting = judge.spec, f"{judge.section}.calibration"
    if not isinstance(spec, ServerJudgeSpec) or not spec.calibration:
        return None
    calibration = read_calibration(spec.calibration, setting)
    if calibration.judge != fingerprint:
        raise UserError(
            f"{setting}: {spec.calibration} was fitted for another judge (fingerprint {short(calibration.judge)}) than "
            f"{spec.label} (fingerprint {short(fingerprint)}). Set {setting} to null, and run "
            f"{_calibrate(judge.section)}."
        )
    return calibration


def final(judge: Judge, judgment: Judgment) -> Judgment:
    """The judgment as the run uses it, from the one that ``judge`` gave.

    Raises:
        UserError: it is a score that is no grade without a calibration.
    """
    if judge.calibration is None:
        if judgment.score is not None:
            _check_scores(judge.section, judgment.score, judgment.score, judgment.pair)
        return judgment
    expected, grades = judge.calibration(np.array([judgment.raw]))
    return judgment._replace(grade=int(grades[0]), calibrated=float(expected[0]))


def final_table(judge: Judge, table: pa.Table) -> pa.Table:
    """As ``final``, for rows of ``tables.JUDGMENTS``. Raises as ``final`` does."""
    if judge.calibration is None:
        if table["score"].null_count < table.num_rows:
            bounds = pc.min_max(table["score"]).as_py()
            worst = bounds["max"] if bounds["max"] > 1 else bounds["min"]
            row = table.slice(pc.index(table["score"], pa.scalar(worst, pa.float32())).as_py(), 1).to_pylist()[0]
            _check_scores(judge.section, bounds["min"], bounds["max"], Pair(row["query_id"], row["passage_id"]))
        return table
    raw = pc.coalesce(table["score"], table["expected"]).to_numpy(zero_copy_only=False)
    expected, grades = judge.calibration(raw)
    values: dict[str, Any] = {"grade": grades, "expected": expected, "judge": [judge.graded_by] * table.num_rows}
    for name, column in values.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(column).cast(field.type))
    return table


def _check_scores(section: str, low: float, high: float, pair: Pair) -> None:
    """Raise UserError if a score is below 0 or above 1. ``pair``: the one that has the highest or the lowest score."""
    if low >= 0 and high <= 1:
        return
    raise UserError(
        f"{section}.kind reranker: query {pair.query_id}, passage {pair.passage_id} has the score "
        f"{high if high > 1 else low:.4g}. A score has a grade only between 0 and 1, unless it is calibrated. Run "
        f"{_calibrate(section)}, and set {section}.calibration to the file that it writes."
    )
