"""Training and mining apply their settings; the logs of trackers are saved."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from pyrite.config import load
from pyrite.embedding.encoder import Encoder
from pyrite.errors import UserError
from pyrite.executors.step import open_run, run_step
from pyrite.plan import Step
from pyrite.progress import NullProgress
from pyrite.stages import evaluate, finetune
from pyrite.stages.context import StepContext
from pyrite.store import open_store
from pyrite.training.losses import LOSSES, Loss
from small_data import UP_TO_MINE

Pyrite = Callable[..., subprocess.CompletedProcess[str]]

#: A stub of tensorboardX with the methods that transformers calls. It saves the trainer's arguments for the tests.
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


def run_steps(run_file: Path, *steps: Step, overrides: Sequence[str] = ()) -> None:
    run = open_run(load(run_file, overrides), open_store(str(run_file.parent / "store")))
    for step in steps:
        run_step(run, step, NullProgress())


TRAINED = (Step("finetune", 1), Step("embed", 1, 0), Step("validate", 1))


@pytest.mark.slow
def test_the_trainer_applies_settings_and_saves_tracker_logs(run_file: Path, tmp_path: Path) -> None:
    run_steps(run_file, *UP_TO_MINE)
    (tmp_path / "stubs/tensorboardX").mkdir(parents=True)
    (tmp_path / "stubs/tensorboardX/__init__.py").write_text(TENSORBOARD)
    path = os.pathsep.join(filter(None, (str(tmp_path / "stubs"), os.environ.get("PYTHONPATH"))))
    losses = []
    for dropout in ("false", "true"):
        settings = ("finetune.report_to=[tensorboard]", "finetune.warmup=0.3", "finetune.weight_decay=0.02")
        command = [
            sys.executable,
            "-m",
            "pyrite",
            "finetune",
            run_file,
            *settings,
            f"finetune.dropout={dropout}",
            "-i1",
        ]
        environment = {**os.environ, "PYRITE_STORE": str(tmp_path / "store"), "PYTHONPATH": path}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        arguments = json.loads((tmp_path / "store/runs/small/logs/finetune-1/args.json").read_text())
        assert (arguments["warmup_steps"], arguments["weight_decay"]) == (0.3, 0.02)
        manifest = json.loads((tmp_path / "store/runs/small/steps/finetune-1.json").read_text())
        losses.append(manifest["summary"]["history"])
    assert losses[0] != losses[1]


def test_query_training_refuses_gradient_caching(run_file: Path) -> None:
    with pytest.raises(UserError, match="set loss to multiple-negatives"):
        load(run_file, ["finetune.train=query", "finetune.loss=cached-multiple-negatives"])


def test_missing_gpus_stop_a_run_before_it_starts(run_file: Path, pyrite: Pyrite, tmp_path: Path) -> None:
    result = pyrite("train", run_file, "finetune.gpus=16")
    assert result.returncode == 2
    assert "finetune.gpus is 16, but this machine has" in result.stderr
    assert not (tmp_path / "store/runs/small/steps").exists()
    with pytest.raises(UserError, match=r"finetune.gpus is 2, but resources.device is cpu"):
        load(run_file, ["finetune.gpus=2", "resources.device=cpu"])


def test_training_uses_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Regression: with four GPUs, batches were four times finetune.batch_size.

    Tests have no GPU, so only their number is faked.
    """
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)

    def batch(arguments: type[SentenceTransformerTrainingArguments]) -> tuple[int, int]:
        built = arguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
        return built.n_gpu, built.train_batch_size

    assert batch(SentenceTransformerTrainingArguments) == (4, 32), "the library's default"
    assert batch(finetune._Arguments) == (1, 8)


def test_a_registered_loss_trains_a_model(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CosineLoss(torch.nn.Module):
        """1 - cosine of anchor and positive."""

        def __init__(self, model: torch.nn.Module):
            super().__init__()
            self.model = model

        def forward(self, features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor | None) -> torch.Tensor:
            assert labels is not None, "the column label is requested by needs_labels"
            anchor, positive, *_ = (self.model(each)["sentence_embedding"] for each in features)
            return (1 - torch.cosine_similarity(anchor, positive)).mean()

    run_steps(run_file, *UP_TO_MINE)
    monkeypatch.setitem(LOSSES, "cosine", Loss(lambda model, *_: CosineLoss(model), needs_labels=True))
    run = open_run(load(run_file), open_store(str(tmp_path / "store")))
    settings = run.spec.finetune.model_copy(update={"loss": "cosine"})
    spec = run.spec.model_copy(update={"finetune": settings})
    ctx = StepContext(spec, Step("finetune", 1), run.store, run.prefix, run.manifests(), "scratch", NullProgress())
    history = finetune.run(ctx)["history"]
    assert history[-1][1] < history[0][1]


def trained(run_file: Path, scratch: str, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], Path]:
    """Train iteration 1 without publishing it: its summary, its weights, and its scratch folder. Without rehearsal."""
    run = open_run(load(run_file), open_store(str(run_file.parent / "store")))
    spec = run.spec.model_copy(update={"finetune": run.spec.finetune.model_copy(update={"rehearsal": 0.0, **settings})})
    ctx = StepContext(spec, Step("finetune", 1), run.store, run.prefix, run.manifests(), scratch, NullProgress())
    summary = finetune.run(ctx)
    return summary, load_file(ctx.scratch / "outputs/iterations/1/model/model.safetensors"), ctx.scratch


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(sum((a[name] - b[name]).square().sum() for name in a) ** 0.5)


def test_anchor_and_l2_sp_hold_the_model_at_the_base(run_file: Path, tiny_model: Path) -> None:
    run_steps(run_file, *UP_TO_MINE)
    base = load_file(tiny_model / "model.safetensors")
    plain = trained(run_file, "plain")[1]
    moved = distance(plain, base)
    assert distance(trained(run_file, "rehearsed", rehearsal=100.0)[1], plain) > 0.1 * moved
    assert distance(trained(run_file, "anchor", anchor=100.0)[1], base) < 0.9 * moved
    assert distance(trained(run_file, "pull", l2_sp=100.0)[1], base) < 0.9 * moved
    assert distance(trained(run_file, "hold", l2_sp=1e9)[1], base) < 1e-6
    assert distance(trained(run_file, "query", train="query", loss="graded")[1], base) > 0.1 * moved


def test_matryoshka_training_improves_truncated_embeddings(run_file: Path, tmp_path: Path) -> None:
    run_steps(run_file, *UP_TO_MINE)
    examples = pq.read_table(tmp_path / "store/runs/small/iterations/1/examples.parquet")
    losses = []
    for dims in (None, [8]):
        settings = {"matryoshka": dims, "epochs": 4.0}
        scratch = trained(run_file, f"dims-{dims}", **settings)[2]
        model = SentenceTransformer(str(scratch / "outputs/iterations/1/model"), device="cpu", truncate_dim=8)
        columns = (model.encode(examples[name].to_pylist(), convert_to_tensor=True) for name in ("anchor", "positive"))
        scores = 20 * model.similarity(*columns)
        losses.append(float(torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))))
    assert losses[1] < 0.95 * losses[0]


def test_dims_above_the_models_stop_a_run_before_judging(run_file: Path) -> None:
    run_steps(run_file, Step("prepare"))
    with pytest.raises(UserError, match=r"finetune.matryoshka: 32 is not below 32, .* Remove it from the list"):
        run_steps(run_file, Step("embed", 0, 0), overrides=["finetune.matryoshka=[16, 32]"])
    with pytest.raises(UserError, match="16 is in the list twice: remove one"):
        load(run_file, ["finetune.matryoshka=[16, 16]"])


def test_a_soup_is_the_mean_of_its_members_and_resumes(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_steps(run_file, *UP_TO_MINE)
    train, numbers = finetune._train, []

    def killed(ctx: StepContext, number: int, *rest: Any) -> Any:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return train(ctx, number, *rest)

    monkeypatch.setattr(finetune, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(run_file, "soup", soup_size=3)
    summary, mean, scratch = trained(run_file, "soup", soup_size=3)
    assert numbers == [0, 1, 1, 2], "the finished training was repeated"
    members = [load_file(scratch / f"member-{number}/model/model.safetensors") for number in range(3)]
    assert distance(members[0], members[1]) > 1e-3
    assert distance(mean, {name: sum(each[name] for each in members) / 3 for name in mean}) < 1e-5  # type: ignore[misc]
    single = trained(run_file, "single")[0]
    assert summary["steps"] > 2 * single["steps"]
    assert [step for step, _ in summary["history"]] == sorted(step for step, _ in summary["history"])
    assert summary["history"][: len(single["history"])] == single["history"]


@pytest.mark.parametrize(("scores", "start"), [([0.5, 0.4], "base"), ([0.5, 0.6], "iteration-1")])
def test_the_next_iteration_starts_from_the_better_model(
    scores: list[float], start: str, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_steps(run_file, *UP_TO_MINE[:2], Step("validate", 0), *UP_TO_MINE[2:], *TRAINED)
    remaining = cycle(scores)
    monkeypatch.setattr("pyrite.stages.inputs.score_of", lambda _: next(remaining))
    run_steps(run_file, *(Step(step.stage, 2, step.shard) for step in UP_TO_MINE[2:]), Step("finetune", 2))
    manifests = open_run(load(run_file), open_store(str(tmp_path / "store"))).manifests()
    assert manifests["retrieve-2"]["summary"]["model"] == start
    assert manifests["finetune-2"]["summary"]["start"] == start
    candidates = [pq.read_table(tmp_path / f"store/runs/small/iterations/{i}/candidates.parquet") for i in (1, 2)]
    assert candidates[0].equals(candidates[1]) == (start == "base")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "message"), [("tensorbord", "Did you mean 'tensorboard'?"), ("comet_ml", "comet_ml is not installed")]
)
def test_a_missing_tracker_stops_the_run_before_it_starts(
    tracker: str, message: str, pyrite: Pyrite, run_file: Path, tmp_path: Path
) -> None:
    result = pyrite("train", run_file, f"finetune.report_to=[{tracker}]")
    assert result.returncode == 2
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "store/runs/small/steps").exists()


def test_a_sharded_base_is_trained_blended_and_exported(run_file: Path, plain_base: Path, tmp_path: Path) -> None:
    """Regression: blending failed if the base's weights were in other files or had other tensor names."""
    base = [f"model.base={plain_base}"]
    run_steps(run_file, *UP_TO_MINE, *TRAINED, overrides=base)
    run = open_run(load(run_file, base), open_store(str(tmp_path / "store")))
    _, blend = run.manifests()["validate-1"]["summary"]["val"]
    ctx = StepContext(run.spec, Step("evaluate"), run.store, run.prefix, run.manifests(), "scratch", NullProgress())
    evaluate._export_model(ctx, blend, tmp_path / "chosen")
    assert (tmp_path / "chosen/model.safetensors").is_file()


def test_query_training_encodes_the_corpus_once(run_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = ["finetune.train=query", "model.max_tokens=64"]
    steps = (*UP_TO_MINE, Step("validate", 0), *TRAINED, Step("retrieve", 2))
    run_steps(run_file, *steps, overrides=settings)
    assert len(list((tmp_path / "store/embeddings").iterdir())) == 1
    run = open_run(load(run_file, settings), open_store(str(tmp_path / "store")))
    ctx = StepContext(run.spec, Step("evaluate"), run.store, run.prefix, run.manifests(), "scratch", NullProgress())
    base = SentenceTransformer(str(tiny_model), device="cpu")
    for name in ("iteration-1", "iteration-1@0.5"):
        evaluate._export_model(ctx, name, tmp_path / name)
        exported = SentenceTransformer(str(tmp_path / name), device="cpu")
        assert (exported.encode_document(["gout"]) == base.encode_document(["gout"])).all()
        assert (exported.encode_query(["gout"]) != base.encode_query(["gout"])).any()
    tuned = SentenceTransformer(str(tmp_path / "store/runs/small/iterations/1/model"), device="cpu")
    queries = SentenceTransformer(str(tmp_path / "iteration-1"), device="cpu").encode_query(["gout"])
    assert (queries == tuned.encode_query(["gout"])).all()
    encoder = Encoder(tmp_path / "iteration-1", tiny_model, run.spec, run.store)
    assert abs(encoder.encode(["gout"], "query") - queries / np.linalg.norm(queries)).max() < 0.02


def test_mining_applies_number_and_grade_of_positives(run_file: Path, tmp_path: Path) -> None:
    def mined(*overrides: str) -> set[tuple[str, str]]:
        run_steps(run_file, Step("mine", 1), overrides=overrides)
        rows = pq.read_table(tmp_path / "store/runs/small/iterations/1/examples.parquet").to_pylist()
        return {(row["query_id"], row["positive_id"]) for row in rows}

    run_steps(run_file, *UP_TO_MINE)
    judged = [
        row
        for path in sorted((tmp_path / "store/runs/small/iterations/1/judgments").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    grades = {(row["query_id"], row["passage_id"]): row["grade"] for row in judged}
    assert {grades[pair] for pair in mined()} == {4}
    more = mined("mine.known_first=false", "mine.num_positives=3", "mine.positive_grade=2", "mine.negative_grade=1")
    assert {grades[pair] for pair in more} > {4}
    assert len(more) > len({query for query, _ in more})


def test_model_code_runs_only_with_trust_remote_code(run_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "own-code"
    shutil.copytree(tiny_model, base)
    modules = json.loads((base / "modules.json").read_text())
    modules[-1] |= {"type": "own.Own", "path": modules[-1]["path"]}
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "own.py").write_text(
        "from sentence_transformers.sentence_transformer.modules import Pooling\nclass Own(Pooling): pass\n"
    )
    run_steps(run_file, Step("prepare"))
    with pytest.raises(UserError, match="does not load"):
        run_steps(run_file, Step("embed", 0, 0), overrides=[f"model.base={base}"])
    run_steps(run_file, Step("embed", 0, 0), overrides=[f"model.base={base}", "model.trust_remote_code=true"])
