"""`pyrite probe`: go if the grades can be mined, otherwise no-go with the reason."""

import asyncio
import json
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pyrite.cli import app
from pyrite.errors import PyriteError
from pyrite.judge_eval import common
from pyrite.judge_eval import probe as probing
from pyrite.judge_eval.probe.findings import information
from pyrite.judge_eval.probe.sampling import sample_query, similar_passages
from pyrite.judges import Judge, Judgment, Missing, Pair
from pyrite.judges.labels import LabelsJudge
from pyrite.llm.pool import NoServerAvailable
from stub_judge import MODEL, Stub

Pyrite = Callable[..., subprocess.CompletedProcess[str]]


class StubJudge(Judge):
    """A judge without an LLM: ``answer`` returns a pair's grade, or the reason why it is missing."""

    fingerprint = "stub"

    def __init__(self, answer: Callable[[Pair], int | str], in_flight: int = 8):
        self.answer, self.in_flight = answer, in_flight

    async def grade(self, pair: Pair) -> Judgment | Missing:
        answer = self.answer(pair)
        if isinstance(answer, str):
            return Missing(pair, answer, 3, "unparsable")
        return Judgment(pair, answer, None, prompt_tokens=200, cached_tokens=50, latency=0.01)


def random_below(pair: Pair, limit: int) -> int:
    """A pseudo-random number below ``limit`` that depends only on the pair."""
    return random.Random(" ".join(pair)).randrange(limit)


@pytest.fixture
def probe(
    monkeypatch: pytest.MonkeyPatch, run_file: Path, tmp_path: Path
) -> Callable[..., tuple[Result, dict[str, Any]]]:
    """``pyrite probe`` in this process with the given judge: (output, probe.json)."""

    def call(judge: Any, *options: str) -> tuple[Result, dict[str, Any]]:
        monkeypatch.setattr(probing, "open_judge", judge if callable(judge) else lambda *_: judge)
        arguments = ["probe", str(run_file), "--store", str(tmp_path / "store"), *options]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, json.loads((tmp_path / "store/runs/small/probe/probe.json").read_text())

    return call


def test_labels_are_a_go(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    result = pyrite("probe", run_file)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "store/runs/small"
    page = folder / "probe/labels-v3/probe.html"
    assert result.stdout.rstrip().splitlines()[-1] == str(page)
    assert (folder / "steps/prepare.json").is_file()

    content = json.loads((folder / "probe/probe.json").read_text())
    assert content["go"] is True
    assert all(check["passed"] for check in content["checks"])
    for part in ("random", "similar"):
        assert content[f"known_above_{part}"]["auc"] == 1
        assert content[f"known_above_{part}"]["low"] < 1
        assert content[f"known_above_{part}"][part] >= 30
    assert content["queries"] == 30
    assert content["answered"]["judged"] == content["answered"]["requested"] >= 300
    assert sum(content["grades"]["all"].values()) == content["answered"]["judged"]
    assert content["hard"]["examples"]["hard"] >= 3
    assert content["pairs_per_second"] > 0
    assert content["prompt_tokens_per_pair"] == content["cached_tokens_per_pair"] == 0

    html = page.read_text()
    assert (folder / "probe/probe.html").read_text() == html
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script", html)
    assert 'name="viewport"' in html
    for sample in content["samples"]["4"]:
        assert sample["passage"][:40] in html

    assert pyrite("prepare", run_file).stdout.count("nothing to do") == 1


@pytest.mark.parametrize(
    ("answer", "failed", "reason"),
    [
        pytest.param(lambda _: 4, {"not all alike", "informative", "hard examples"}, "pairs have grade 4", id="all 4"),
        pytest.param(
            lambda pair: "none of the labels" if random_below(pair, 25) == 0 else 1 + random_below(pair, 4),
            {"few missing", "not flat"},
            "pairs have no grade",
            id="missing, others at random",
        ),
    ],
)
def test_bad_judges_are_a_no_go(
    probe: Callable[..., Any], answer: Callable[[Pair], int | str], failed: set[str], reason: str
) -> None:
    result, content = probe(StubJudge(answer))
    assert result.exit_code == 3
    assert content["go"] is False
    found = {check["name"] for check in content["checks"] if not check["passed"]}
    assert found >= failed | {"known above random"}
    assert content["verdict"].startswith("No-go: ")
    assert reason in content["verdict"]
    assert reason in " ".join(result.output.split())
    assert content["known_above_random"]["low"] < 0.7
    assert (content["prompt_tokens_per_pair"], content["cached_tokens_per_pair"]) == (200, 50)


@pytest.mark.parametrize("reply", [None, "<think>"])
def test_random_grades_are_a_no_go(pyrite: Pyrite, run_file: Path, tmp_path: Path, reply: str | None) -> None:
    """The stub server grades by a digest of the texts: at random. Off-label tokens are a second no-go."""
    with Stub() as server:
        server.reply_text = reply
        judge = ("judge.kind=llm", f"judge.model={MODEL}", f"resources.judge_urls=[{server.url}]")
        result = pyrite("probe", run_file, *judge, "--queries", 40)
        assert result.returncode == 3, result.stdout + result.stderr
        content = json.loads((tmp_path / "store/runs/small/probe/probe.json").read_text())
        pairs = [count for pair, count in server.graded.items() if "capital of France" not in pair[0]]
    assert pairs == [1] * content["answered"]["judged"]
    assert content["answered"]["missing"] == 0
    passed = {check["name"]: check["passed"] for check in content["checks"]}
    assert not passed["known above random"]
    assert passed["answers with a grade"] == (reply is None)
    assert content["judge"]["off_label"] == (content["answered"]["judged"] if reply else 0)
    assert ("is not a grade. The maximum is 50%" in " ".join(result.stdout.split())) == bool(reply)
    assert content["servers"] == 1
    assert "not clearly graded above random" in " ".join(result.stdout.split())
    assert (content["judge"]["decoding_mode"], content["judge"]["truncated"]) == ("label_ids", 0)
    page = (tmp_path / "store/runs/small/probe/probe.html").read_text()
    assert "decoding mode label_ids, 0 passages truncated" in page
    assert content["prompt_tokens_per_pair"] > content["cached_tokens_per_pair"] >= 0
    assert 0 < content["pairs_per_second"] < 1e6
    assert content["samples"]["1"][0]["distribution"] is not None


def test_a_judge_that_grades_nothing_fails_without_output(probe: Callable[..., Any], tmp_path: Path) -> None:
    requested: list[Pair] = []

    def answer(pair: Pair) -> str:
        requested.append(pair)
        return "timed out"

    with pytest.raises(
        PyriteError, match=r"graded none of the first 20 pairs; most frequent reason \(20 times\): timed out\. Check"
    ):
        probe(StubJudge(answer))
    assert 20 <= len(requested) < 40
    assert not (tmp_path / "store/runs/small/probe").exists()


def test_too_many_missing_pairs_stop_without_a_verdict(probe: Callable[..., Any]) -> None:
    requested: list[Pair] = []

    def answer(pair: Pair) -> int | str:
        requested.append(pair)
        return 1 if len(requested) < 10 else "timed out"

    with pytest.raises(
        PyriteError, match=r"21 of \d+ pairs could not be graded, .*; most frequent reason \(21 times\): timed out"
    ):
        probe(StubJudge(answer))
    assert len(requested) < 50


def test_the_wait_for_a_server_is_not_timed(probe: Callable[..., Any]) -> None:
    class SlowStart(StubJudge):
        async def ready(self) -> None:
            await asyncio.sleep(3)

    _, content = probe(SlowStart(lambda pair: 1 + random_below(pair, 4)))
    assert content["seconds"] < 3


def by_labels(answer: Callable[[Pair, int], int]) -> Callable[..., StubJudge]:
    """Opens a judge that grades by a pair and its grade by the data set's labels."""

    def opened(spec: Any, *tables: Any) -> StubJudge:
        del spec
        labels = LabelsJudge.of(*tables)
        return StubJudge(lambda pair: answer(pair, labels.true_grade(pair)))

    return opened


def test_a_judge_of_topics_alone_is_a_no_go(probe: Callable[..., Any], tmp_path: Path) -> None:
    result, content = probe(by_labels(lambda _, truth: 4 if truth >= 2 else 1))
    assert result.exit_code == 3, result.output
    assert [check["name"] for check in content["checks"] if not check["passed"]] == ["known above similar"]
    assert content["known_above_random"]["low"] > 0.7
    assert content["known_above_similar"]["auc"] == 0.5
    assert "may only recognise the topic" in " ".join(result.output.split())
    shown = content["samples"]["similar, graded high"]
    assert shown
    assert all("similar" in row["parts"] and not row["known_relevant"] for row in shown)
    assert "Similar passages with grade 3 or 4" in (tmp_path / "store/runs/small/probe/probe.html").read_text()


def test_too_few_pairs_have_no_verdict(probe: Callable[..., Any], tmp_path: Path) -> None:
    result, content = probe(by_labels(lambda _, truth: truth), "--queries", "5")
    assert (result.exit_code, content["go"]) == (3, None)
    assert re.fullmatch(r"No verdict: \d+ pairs of 5 queries are too few to tell\.", content["verdict"])
    assert content["verdict"] in " ".join(result.output.split())
    assert "known relevant passages" not in result.output
    assert "No verdict: too few pairs" in (tmp_path / "store/runs/small/probe/probe.html").read_text()


def test_wrong_grades_lower_the_auc_and_are_shown(probe: Callable[..., Any]) -> None:
    """If a twentieth of the known passages is graded 1, the result is still a go, and these passages are listed."""
    wrong: set[Pair] = set()

    def answer(pair: Pair, truth: int) -> int:
        if truth == 4 and random_below(pair, 20) == 0:
            wrong.add(pair)
            return 1
        return truth

    result, content = probe(by_labels(answer))
    assert wrong
    assert result.exit_code == 0, result.output
    for part in ("random", "similar"):
        auc = content[f"known_above_{part}"]
        assert auc["low"] < auc["auc"] < 1
    shown = content["samples"]["known, graded low"]
    assert {Pair(row["query_id"], row["passage_id"]) for row in shown} <= wrong
    assert shown


def test_a_missing_server_setting_fails_before_encoding(pyrite: Pyrite, run_file: Path, tmp_path: Path) -> None:
    result = pyrite("probe", run_file, "judge.kind=llm", "judge.model=any")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "resources.judge_urls is empty" in result.stderr
    assert not list((tmp_path / "store").rglob("*.json")), "nothing is prepared"


def test_a_dead_server_fails_before_data_is_prepared(
    monkeypatch: pytest.MonkeyPatch, run_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "_SERVER_SECONDS", 0.5)
    settings = ["judge.kind=llm", "judge.model=any", "resources.judge_urls=[http://127.0.0.1:9]"]
    result = CliRunner().invoke(app, ["probe", str(run_file), "--store", str(tmp_path / "store"), *settings])
    assert "waiting up to 0.5 s for the judge's server: http://127.0.0.1:9" in " ".join(result.output.split())
    assert isinstance(result.exception, NoServerAvailable)
    assert "No server in resources.judge_urls responds" in str(result.exception)
    assert not list((tmp_path / "store").rglob("*.json")), "nothing is prepared"


def test_information_is_0_to_2_bits() -> None:
    pair = Pair("q", "c")
    unsure = [Judgment(pair, 1, (0.4, 0.3, 0.2, 0.1))] * 5
    assert information(unsure) == pytest.approx(0)
    assert information([Judgment(pair, 1, None)] * 5) == pytest.approx(0)
    assert information([Judgment(pair, grade, None) for grade in (1, 2, 3, 4)]) == pytest.approx(2)


def test_a_query_sample_has_top_known_and_random_passages() -> None:
    ranked = {f"c{rank}": (rank, 1 - rank / 100) for rank in range(1, 51)}
    passages = [f"c{number}" for number in range(1, 60)]
    relevant = ["c3", "c40", "c58"]
    for seed in range(20):
        sample = sample_query("q", ranked, relevant, ["c2", "c45"], passages, 10, 30, seed)
        assert len({each.pair for each in sample}) == len(sample)
        drawn = [each for each in sample if "candidate" in each.parts]
        assert sorted(each.rank for each in drawn if each.rank)[:5] == [1, 2, 3, 4, 5]
        assert len(drawn) == 10
        assert max(each.rank or 0 for each in drawn) <= 30
        known = {each.pair.passage_id for each in sample if "known" in each.parts}
        random_passages = {each.pair.passage_id for each in sample if "random" in each.parts}
        similar = {each.pair.passage_id for each in sample if "similar" in each.parts}
        assert (len(known), similar, len(random_passages)) == (2, {"c2", "c45"}, 3)
        assert known <= set(relevant)
        assert random_passages.isdisjoint(relevant)


def test_similar_passages_are_of_the_topic_if_it_is_known() -> None:
    retrieved = {f"c{rank}": 2 if rank % 2 == 0 else 1 for rank in range(1, 51)} | {"c2": 4, "c4": 3}
    drawn = [similar_passages(f"q{i}", retrieved, 0) for i in range(200)]
    assert all(len(set(each)) == 3 for each in drawn)
    assert {passage for each in drawn for passage in each} == {f"c{rank}" for rank in range(6, 25, 2)}
    no_topics = {passage: 1 if grade < 3 else grade for passage, grade in retrieved.items()}
    assert similar_passages("q", no_topics, 0) == ["c1", "c3", "c5"]


def test_deeper_ranks_are_drawn_with_exponential_decay() -> None:
    ranked = {f"c{rank}": (rank, 0.0) for rank in range(1, 51)}
    samples = [sample_query(f"q{i}", ranked, (), (), list(ranked), 10, None, 0) for i in range(600)]
    assert samples == [sample_query(f"q{i}", ranked, (), (), list(ranked), 10, None, 0) for i in range(600)]
    ranks = [[each.rank or 0 for each in sample if "candidate" in each.parts] for sample in samples]
    assert all(each == sorted(set(each)) and each[:5] == [1, 2, 3, 4, 5] and len(each) == 10 for each in ranks)
    drawn = Counter(rank for each in ranks for rank in each[5:])
    near, far = (sum(drawn[rank] for rank in range(first, first + 10)) for first in (6, 41))
    assert far > 0
    assert near > 5 * far
