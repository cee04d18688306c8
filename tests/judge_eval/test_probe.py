"""pyrite probe: go where grades can be mined, no-go with the reason where they cannot."""

import asyncio
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pyrite.cli import app
from pyrite.errors import PyriteError
from pyrite.judge_eval import probe as probing
from pyrite.judge_eval.probe.findings import information
from pyrite.judge_eval.probe.sampling import sample_query
from pyrite.judges import Judgment, Missing, Pair
from pyrite.judges.base import StatelessJudge
from pyrite.judges.labels import LabelsJudge
from pyrite.spec import JudgeSpec
from stub_judge import MODEL, Stub

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


class StubJudge(StatelessJudge):
    """Stands in for a language model that cannot be made to answer as a test needs it: all alike, or never.

    ``answer`` gives a pair's grade, or a reason why it is missing.
    """

    fingerprint = "stub"
    shared = False

    def __init__(self, answer: Callable[[Pair], int | str], in_flight: int = 8):
        self.answer, self.in_flight = answer, in_flight

    async def grade(self, pair: Pair) -> Judgment | Missing:
        answer = self.answer(pair)
        if isinstance(answer, str):
            return Missing(pair, answer, 3, "unparsable")
        return Judgment(pair, answer, None, prompt_tokens=200, cached_tokens=50, latency=0.01)


def die(pair: Pair, sides: int) -> int:
    """A throw from 0 that is the pair's own."""
    return random.Random(" ".join(pair)).randrange(sides)


@pytest.fixture
def probe(
    monkeypatch: pytest.MonkeyPatch, run_file: Path, tmp_path: Path
) -> Callable[..., tuple[Result, dict[str, Any]]]:
    """``pyrite probe`` in this process, with a judge of the test's own: (what it printed, probe.json)."""

    def call(judge: Any, *words: str) -> tuple[Result, dict[str, Any]]:
        monkeypatch.setattr(probing, "open_judge", judge if callable(judge) else lambda *_: judge)
        arguments = ["probe", str(run_file), "--store", str(tmp_path / "store"), *words]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, json.loads((tmp_path / "store/runs/small/probe/probe.json").read_text())

    return call


def test_the_answer_key_is_a_go(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    result = pyrite("probe", run_file)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "store/runs/small"
    page = folder / "probe/probe.html"
    assert result.stdout.rstrip().splitlines()[-1] == str(page)
    assert (folder / "steps/prepare.json").is_file()

    content = json.loads((folder / "probe/probe.json").read_text())
    assert content["go"] is True
    assert all(check["passed"] for check in content["checks"])
    assert content["known_above_random"]["auc"] == 1
    assert content["known_above_random"]["low"] < 1
    assert content["queries"] == 30
    assert content["answered"]["judged"] == content["answered"]["requested"] >= 300
    assert sum(content["grades"]["all"].values()) == content["answered"]["judged"]
    assert content["hard"]["examples"]["hard"] >= 3
    assert content["pairs_per_second"] > 0
    assert content["prompt_tokens_per_pair"] == content["cached_tokens_per_pair"] == 0

    html = page.read_text()
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script", html)
    assert 'name="viewport"' in html
    for sample in content["samples"]["4"]:
        assert sample["passage"][:40] in html

    assert pyrite("prepare", run_file).stdout.count("nothing to do") == 1


@pytest.mark.parametrize(
    ("answer", "failed", "words"),
    [
        pytest.param(
            lambda _: 1, {"not all alike", "informative", "hard examples"}, "grade 1 was given to", id="all 1"
        ),
        pytest.param(
            lambda pair: "none of the labels" if die(pair, 25) == 0 else 1 + die(pair, 4),
            {"few missing"},
            "were left without a grade",
            id="missing",
        ),
    ],
)
def test_a_judge_that_cannot_judge_is_a_no_go(
    probe: Callable[..., Any], answer: Callable[[Pair], int | str], failed: set[str], words: str
) -> None:
    result, content = probe(StubJudge(answer))
    assert result.exit_code == 3
    assert content["go"] is False
    found = {check["name"] for check in content["checks"] if not check["passed"]}
    assert found >= failed | {"known above random"}
    assert content["verdict"].startswith("No-go: ")
    assert words in content["verdict"]
    assert words in " ".join(result.output.split())
    assert content["known_above_random"]["low"] < 0.7
    assert (content["prompt_tokens_per_pair"], content["cached_tokens_per_pair"]) == (200, 50)


@pytest.mark.parametrize("said", [None, "<think>"])
def test_dice_behind_a_server_are_a_no_go(pyrite: Pyrite, run_file: Path, tmp_path: Path, said: str | None) -> None:
    """The stub server grades by a digest of the texts, so any order among its grades is chance.

    What its model says instead of a grade does not change them, and is a no-go of its own.
    """
    with Stub() as server:
        server.reply_text = said
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        result = pyrite("probe", run_file, *judge, "--queries", 40)
        assert result.returncode == 3, result.stdout + result.stderr
        content = json.loads((tmp_path / "store/runs/small/probe/probe.json").read_text())
        pairs = [asked for pair, asked in server.graded.items() if "capital of France" not in pair[0]]
    assert pairs == [1] * content["answered"]["judged"]
    assert content["answered"]["missing"] == 0
    passed = {check["name"]: check["passed"] for check in content["checks"]}
    assert not passed["known above random"]
    assert passed["answers with a grade"] == (said is None)
    assert content["judge"]["off_label"] == (content["answered"]["judged"] if said else 0)
    assert ("no grade. At most 50% may be" in " ".join(result.stdout.split())) == bool(said)
    assert content["servers"] == 1
    assert "not clearly graded above random" in " ".join(result.stdout.split())
    assert (content["judge"]["decoding_mode"], content["judge"]["truncated"]) == ("label_ids", 0)
    page = (tmp_path / "store/runs/small/probe/probe.html").read_text()
    assert "decoding mode label_ids, 0 passages truncated" in page
    assert content["prompt_tokens_per_pair"] > content["cached_tokens_per_pair"] >= 0
    assert 0 < content["pairs_per_second"] < 1e6
    assert content["samples"]["1"][0]["distribution"] is not None


def test_a_judge_that_never_answers_is_given_up_and_nothing_is_written(
    probe: Callable[..., Any], tmp_path: Path
) -> None:
    asked: list[Pair] = []

    def answer(pair: Pair) -> str:
        asked.append(pair)
        return "timed out"

    with pytest.raises(PyriteError, match=r"graded none of the first 20 pairs; 20 times: timed out\. Look at"):
        probe(StubJudge(answer))
    assert 20 <= len(asked) < 40
    assert not (tmp_path / "store/runs/small/probe").exists()


def test_far_too_many_missing_is_no_verdict_and_stops_at_once(probe: Callable[..., Any]) -> None:
    asked: list[Pair] = []

    def answer(pair: Pair) -> int | str:
        asked.append(pair)
        return 1 if len(asked) < 10 else "timed out"

    with pytest.raises(PyriteError, match=r"21 of \d+ pairs could not be graded, .*; 21 times: timed out"):
        probe(StubJudge(answer))
    assert len(asked) < 50


def test_the_time_until_a_server_is_there_is_none_of_the_judges_speed(probe: Callable[..., Any]) -> None:
    class Slow(StubJudge):
        async def ready(self) -> None:
            await asyncio.sleep(3)

    _, content = probe(Slow(lambda pair: 1 + die(pair, 4)))
    assert content["seconds"] < 3


def test_an_answer_key_with_errors_loses_certainty_and_is_shown_where_it_errs(probe: Callable[..., Any]) -> None:
    """One known passage in four is graded 1: still a go, and the page shows those first."""
    keys: list[LabelsJudge] = []
    wrong: set[Pair] = set()

    def opened(spec: Any, *tables: Any) -> StubJudge:
        del spec
        keys.append(LabelsJudge(*tables))
        return StubJudge(answer)

    def answer(pair: Pair) -> int:
        grade = keys[0]._grade(pair)
        if grade == 4 and die(pair, 4) == 0:
            wrong.add(pair)
            return 1
        return grade

    result, content = probe(opened)
    assert wrong
    assert result.exit_code == 0, result.output
    auc = content["known_above_random"]
    assert auc["low"] < auc["auc"] < 1
    shown = content["samples"]["known, graded low"]
    assert {Pair(row["query_id"], row["passage_id"]) for row in shown} <= wrong
    assert shown


def test_a_judge_without_an_address_is_refused_before_anything_is_encoded(
    pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    result = pyrite("probe", run_file, "judge.kind=llm", "judge.model=any")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "judge_urls" in result.stderr
    assert not (tmp_path / "store/embeddings").exists()


def test_information_is_none_for_equal_answers_however_sure_and_two_bits_for_four_sure_grades() -> None:
    pair = Pair("q", "c")
    unsure = [Judgment(pair, 1, (0.4, 0.3, 0.2, 0.1))] * 5
    assert information(unsure) == pytest.approx(0)
    assert information([Judgment(pair, 1, None)] * 5) == pytest.approx(0)
    assert information([Judgment(pair, grade, None) for grade in (1, 2, 3, 4)]) == pytest.approx(2)


def test_half_the_candidates_are_the_first_ranks_and_random_ones_are_never_known_to_be_relevant() -> None:
    ranked = {f"c{rank}": (rank, 1 - rank / 100) for rank in range(1, 51)}
    passages = [f"c{number}" for number in range(1, 60)]
    relevant = ["c3", "c40", "c58"]
    for seed in range(20):
        asked = sample_query("q", ranked, relevant, passages, 10, JudgeSpec(rank_window=30), seed)
        assert len({each.pair for each in asked}) == len(asked)
        chosen = [each for each in asked if "candidate" in each.parts]
        assert sorted(each.rank for each in chosen if each.rank)[:5] == [1, 2, 3, 4, 5]
        assert len(chosen) == 10
        assert max(each.rank or 0 for each in chosen) <= 30
        known = {each.pair.passage_id for each in asked if "known" in each.parts}
        others = {each.pair.passage_id for each in asked if "random" in each.parts}
        assert (len(known), len(others)) == (2, 3)
        assert known <= set(relevant)
        assert others.isdisjoint(relevant)
