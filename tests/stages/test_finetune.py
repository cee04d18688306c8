"""Settings of training and mining reach who is to heed them; trackers keep their logs."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformerTrainingArguments

from pyrite.config import load
from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.stages import evaluate, finetune
from pyrite.stages.context import StepContext
from pyrite.store import open_store

Pyrite = Callable[..., subprocess.CompletedProcess[str]]

#: As much of tensorboardX as transformers uses: it writes down the trainer's arguments, which the tests read.
TENSORBOARD = """
from pathlib import Path

class SummaryWriter:
    def __init__(self, log_dir):
        self.folder = Path(log_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
    def add_text(self, tag, text):
        (self.folder / f"{tag}.json").write_text(text)
    def add_scalar(self, *values): pass
    def flush(self): pass
    def close(self): pass
"""


def do(run_file: Path, *steps: Step, overrides: Sequence[str] = ()) -> None:
    run = open_run(load(run_file, overrides), open_store(str(run_file.parent / "store")))
    for step in steps:
        run_step(run, step, NullProgress())


TO_MINE = (Step("prepare"), Step("retrieve", 1), Step("judge", 1, 0), Step("judge", 1, 1), Step("mine", 1))


@pytest.mark.slow
def test_the_trainer_heeds_the_settings_and_a_trackers_logs_stay(
    pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    do(run_file, *TO_MINE)
    (tmp_path / "fakes/tensorboardX").mkdir(parents=True)
    (tmp_path / "fakes/tensorboardX/__init__.py").write_text(TENSORBOARD)
    losses = []
    for dropout in ("false", "true"):
        settings = ("finetune.report_to=[tensorboard]", "finetune.warmup=0.3", "finetune.weight_decay=0.02")
        words = ("finetune", run_file, *settings, f"finetune.dropout={dropout}", "-i", 1)
        result = pyrite(*words, PYTHONPATH=str(tmp_path / "fakes"))
        assert result.returncode == 0, result.stderr
        arguments = json.loads((tmp_path / "store/runs/small/logs/finetune-1/args.json").read_text())
        assert (arguments["warmup_steps"], arguments["weight_decay"]) == (0.3, 0.02)
        manifest = json.loads((tmp_path / "store/runs/small/steps/finetune-1.json").read_text())
        losses.append(manifest["summary"]["history"])
    assert losses[0] != losses[1]


def test_training_takes_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bug: on four GPUs batches of four times finetune.batch_size. Only the count of GPUs is made up here."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)

    def batch(arguments: type[SentenceTransformerTrainingArguments]) -> tuple[int, int]:
        made = arguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
        return made.n_gpu, made.train_batch_size

    assert batch(SentenceTransformerTrainingArguments) == (4, 32), "what the library does of itself"
    assert batch(finetune._Arguments) == (1, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "said"), [("tensorbord", "Did you mean 'tensorboard'?"), ("comet_ml", "comet_ml is not installed")]
)
def test_a_tracker_that_is_not_there_is_told_before_the_first_step(
    tracker: str, said: str, pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    result = pyrite("train", run_file, f"finetune.report_to=[{tracker}]")
    assert result.returncode == 2
    assert said in result.stderr.replace("\n", " ")
    assert not (tmp_path / "store/runs/small/steps").exists()


def test_a_plain_checkpoint_in_several_files_is_trained_and_its_blends_scored_and_handed_over(
    run_file: Path, plain_base: Path, tmp_path: Path
) -> None:
    """The bug: the run dies after the first training, since the base's weights are in other files by other names."""
    base = [f"model.base={plain_base}"]
    do(run_file, *TO_MINE, Step("finetune", 1), Step("validate", 1), overrides=base)
    run = open_run(load(run_file, base), open_store(str(tmp_path / "store")))
    _, blend = run.manifests()["validate-1"]["summary"]["val"]
    ctx = StepContext(run.spec, Step("evaluate"), run.store, run.prefix, run.manifests(), "scratch", NullProgress())
    evaluate._export_model(ctx, blend, tmp_path / "chosen")
    assert (tmp_path / "chosen/model.safetensors").is_file()


def test_mining_heeds_how_many_positives_of_which_grade(run_file: Path, tmp_path: Path) -> None:
    def mined(*overrides: str) -> set[tuple[str, str]]:
        do(run_file, Step("mine", 1), overrides=overrides)
        rows = pq.read_table(tmp_path / "store/runs/small/iterations/1/examples.parquet").to_pylist()
        return {(row["query_id"], row["positive_id"]) for row in rows}

    do(run_file, *TO_MINE)
    judged = [
        row
        for path in sorted((tmp_path / "store/runs/small/iterations/1/judgments").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    grades = {(row["query_id"], row["passage_id"]): row["grade"] for row in judged}
    assert {grades[pair] for pair in mined()} == {4}
    more = mined("mine.num_positives=3", "mine.positive_grade=2", "mine.negative_grade=1")
    assert {grades[pair] for pair in more} > {4}
    assert len(more) > len({query for query, _ in more})


def test_code_of_a_model_runs_only_where_the_run_says_so(run_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "own-code"
    shutil.copytree(tiny_model, base)
    modules = json.loads((base / "modules.json").read_text())
    modules[-1] |= {"type": "own.Own", "path": modules[-1]["path"]}
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "own.py").write_text(
        "from sentence_transformers.sentence_transformer.modules import Pooling\nclass Own(Pooling): pass\n"
    )
    do(run_file, Step("prepare"))
    with pytest.raises(UserError, match="does not load"):
        do(run_file, Step("validate", 0), overrides=[f"model.base={base}"])
    do(run_file, Step("validate", 0), overrides=[f"model.base={base}", "model.trust_remote_code=true"])
