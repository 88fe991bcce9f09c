"""Whole runs through `train(cfg)`, on drawn shapes and a very small model."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL_DEMO, composed, configured, rows_of
from support import saved_model

from captioning.cli import built, one_sentence_errors
from captioning.config import TrainConfig
from captioning.data.batch import PictureFormat
from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.runs import LAST, read_checkpoint
from captioning.training.lightning_internals import cluster_environment, unfinished_epoch
from captioning.training.reports import ResultsTable
from captioning.training.run import check_limits, train, users_callbacks

PLAIN = ("logger=csv", "sample_pictures=0", "scores.pictures=0")


def demo(run_dir, *overrides):
    return composed(run_dir, *overrides, run=SMALL_DEMO)


def weights(run):
    return {name: value.clone() for name, value in run.module.state_dict().items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(demo(tmp_path_factory.mktemp("run")))


def test_the_names_of_the_design_are_logged(run):
    logged = {name for row in rows_of(run.run_dir) for name, value in row.items() if value}
    assert logged >= {
        "step",
        "epoch",
        "train/loss",
        "train/perplexity",
        "val/loss",
        "val/perplexity",
        "val/perplexity_floor",
        "test/perplexity",
        "lr/cross_attention",
        "lr/decoder",
        "lr/encoder",
        "captions_per_second",
        "gradient_norm",
        "trainable_parameters",
    }


def test_there_is_a_row_for_every_logged_step_and_every_epoch(run):
    rows = rows_of(run.run_dir)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [4, 6, 8, 12, 16, 18]
    assert [int(row["epoch"]) for row in rows if row["val/loss"]] == [0, 1, 2]


def test_the_stages_unlock_one_group_after_the_other(run):
    counts = {row["epoch"]: int(row["trainable_parameters"]) for row in rows_of(run.run_dir) if row["train/loss"]}
    sizes = {
        g: sum(p.numel() for _, p in run.module.captioner.parameters_of(g))
        for g in ("cross_attention", "decoder", "encoder")
    }
    assert counts["0"] == sizes["cross_attention"]
    assert counts["1"] == sizes["cross_attention"] + sizes["decoder"]
    assert counts["2"] == sum(sizes.values())


def table_of(run_dir):
    lines = (run_dir / "results.md").read_text().splitlines()
    return [line for line in lines if line.startswith("|")]


def test_the_results_table_has_a_row_an_epoch(run):
    lines = table_of(run.run_dir)
    assert (
        lines[0] == "| Epoch | Train Loss | Train Perplexity | Val Loss | Val Perplexity |"
        " Val CIDEr | Val BLEU-4 | Val ROUGE-L | Val Distinct | Val Vocabulary | Val Novel |"
    )
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "1", "2"]
    last = rows_of(run.run_dir)[-2]
    assert lines[-1].split("|")[10].strip() == f"{float(last['val/vocabulary']):.0f}"
    assert 0 <= float(last["val/novel"]) <= 1
    assert float(lines[-1].split("|")[5]) == pytest.approx(float(last["val/perplexity"]), abs=1e-3)
    notes = (run.run_dir / "results.md").read_text()
    assert "Guessing by how frequent each token is has a perplexity of " in notes
    assert notes.count("(a reference: ") == 3 and float(last["val/perplexity_unigram"]) > 1


def test_the_curves_lie_beside_the_table(run):
    with Image.open(run.run_dir / "curves.png") as picture:
        assert picture.format == "PNG"


def test_validation_perplexity_is_exact_over_the_whole_split(run):
    captioner = run.module.captioner.eval()
    best = torch.load(run.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    captioner.load_state_dict({k.removeprefix("captioner."): v for k, v in best["state_dict"].items()})
    with torch.no_grad():
        sums = [captioner.loss(batch) for batch in run.datamodule.val_dataloader()]
    loss = sum(float(s.nats) for s in sums) / sum(int(s.tokens) for s in sums)
    logged = [float(row["val/loss"]) for row in rows_of(run.run_dir) if row["val/loss"]][-1]
    assert logged == pytest.approx(loss, rel=1e-6)


def test_checkpoints_hold_tensors_and_plain_containers(run):
    for name in ("best", "last"):
        checkpoint = torch.load(run.run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert {"state_dict", "captioner", "optimizer_states"} <= checkpoint.keys()
    assert not list((run.run_dir / "checkpoints").glob(".*")), "no temporary file is left"


@functools.cache
def wandb_records(run_dir):
    """Everything that W&B's own reader finds in the offline runs under `run_dir`, in order of time."""
    records = []
    for folder in sorted(Path(run_dir).glob("wandb/offline-run-*")):
        shown = subprocess.run(
            [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder],
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        records += [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")]
    return records


def test_the_run_can_be_read_back_from_wandb(run):
    text = "\n".join(json.dumps(record) for record in wandb_records(run.run_dir))
    for name in ("train/loss", "val/perplexity", "val/perplexity_floor", "lr/encoder", "gradient_norm", "val/samples"):
        assert name in text
    assert "learning_rates" in text, "the whole configuration is there"


def test_the_table_of_pictures_has_references_and_generated_captions(run):
    tables = sorted(run.run_dir.glob("wandb/offline-run-*/files/media/table/val/samples*.json"))
    assert len(tables) == 3, "one after each validation, none after the sanity check"
    table = json.loads(tables[-1].read_text())
    assert table["columns"] == ["image_id", "picture", "captions", "generated", "log_probability"]
    assert len(table["data"]) == 3
    strips = sorted(run.run_dir.glob("wandb/offline-run-*/files/media/images/val/heat_maps*.png"))
    assert len(strips) == 3 * 3, "of each of the three pictures, as often"
    split = run.datamodule.splits["val"]
    for image_id, _, captions, _, log_probability in table["data"]:
        assert captions.split("\n") == list(split.captions[list(split.image_ids).index(int(image_id))])
        assert log_probability < 0


def test_the_pictures_of_the_table_wait_in_the_run_folder_for_their_upload(run):
    artifacts = [record["artifact"] for record in wandb_records(run.run_dir) if record["type"] == "artifact"]
    tables = [artifact for artifact in artifacts if artifact["type"] == "run_table"]
    assert len(tables) == 3
    contents = tables[-1]["manifest"]["contents"]
    drawn = [entry for entry in contents if entry["path"].startswith("media/images/")]
    assert len(drawn) == 3
    wanted = {pixels.permute(1, 2, 0).numpy().tobytes() for pixels in run.datamodule.samples(3)[0]}
    assert {np.asarray(Image.open(entry["local_path"])).tobytes() for entry in drawn} == wanted
    assert all(Path(entry["local_path"]).is_relative_to(run.run_dir) for entry in contents)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    def stop(self, trainer, *_):
        if trainer.global_step == 17:  # in epoch 2, behind a logged step
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultsTable, "on_train_batch_end", stop, raising=False)
        with pytest.raises(KeyboardInterrupt, match=f"resume=.*{tmp_path.name}"):
            train(demo(tmp_path))
    resumed = train(demo(tmp_path, f"resume={tmp_path}"))
    assert (tmp_path / "results.md").read_text() == (run.run_dir / "results.md").read_text()
    for name, value in weights(run).items():
        assert torch.equal(value, weights(resumed)[name]), name
    logged = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logged) == 2 and len({path.name for path in logged}) == 1, "both parts are of one W&B run"
    assert [row["val/loss"] for row in rows_of(tmp_path)] == [row["val/loss"] for row in rows_of(run.run_dir)]
    assert rows_of(tmp_path)[0].keys() == rows_of(run.run_dir)[0].keys()
    assert wandb_rows(tmp_path) == wandb_rows(run.run_dir), "W&B has each row once"


def wandb_rows(run_dir):
    """Step, epoch and training loss of each row that W&B was given, in order."""
    items = [record["history"]["item"] for record in wandb_records(run_dir) if record["type"] == "history"]
    return [(item["trainer/global_step"], item.get("epoch"), item.get("train/loss")) for item in items]


def test_a_finished_run_is_extended_with_other_rates_and_other_batches(run, tmp_path):
    shutil.copytree(run.run_dir, tmp_path / "run")
    new = (
        *("trainer.max_epochs=4", "logger=csv", "data.batch_size=16", "optimizer.weight_decay=0.5"),
        *("stage.decay=none", "stage.warmup_steps=0", "stage.learning_rates.decoder=0.125"),
    )
    extended = train(demo(tmp_path / "run", f"resume={tmp_path / 'run'}", *new))
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows if row["val/loss"]] == ["0", "1", "2", "3"]
    assert sum(bool(row["test/loss"]) for row in rows) == 1, "the test of the shorter run is not one of this"
    of_epoch = [row for row in rows if row["epoch"] == "3" and row["train/loss"]]
    assert [int(row["step"]) for row in of_epoch] == [20, 21], "18 steps of 8 pictures, then 3 of 16"
    assert {float(row["lr/decoder"]) for row in of_epoch} == {0.125}
    decays = {group["weight_decay"] for group in extended.trainer.optimizers[0].param_groups}
    assert decays == {0.5, 0.0}, "not those that came with the optimizer's state"


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    again = train(demo(tmp_path, "logger=csv", "sample_pictures=0"))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(run).items())
    assert not (tmp_path / "wandb").exists()


def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path):
    stopped = train(
        demo(
            tmp_path,
            *PLAIN,
            "early_stopping_epochs=1",
            "trainer.max_epochs=9",
            "stage.learning_rates={cross_attention: 1e-30, decoder: 1e-30, encoder: 1e-30}",
        )
    )
    assert stopped.trainer.current_epoch < 4


def test_each_job_of_a_multirun_has_its_own_folder_and_wandb_run(command, tmp_path):
    status, output = command(
        "train.py", "-m", *SMALL_DEMO, "trainer.max_epochs=1", *PLAIN[1:], "seed=1,2", f"hydra.sweep.dir={tmp_path}"
    )
    assert status == 0, output
    ids = {(tmp_path / job / "wandb-run-id.txt").read_text() for job in ("0", "1")}
    assert len(ids) == 2
    losses = [rows_of(tmp_path / job)[-1]["test/loss"] for job in ("0", "1")]
    assert losses[0] != losses[1]
    assert "| run | seed | val/perplexity" in output and "± " in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").is_file()


@pytest.fixture
def commanded(command, once, tmp_path):
    """A copy of the folder that `train.py` leaves after one epoch, where a first try failed before its first step."""

    def make(folder):
        assert command("train.py", *SMALL_DEMO, "data.val_pictures=0", f"run_dir={folder}")[0] == 1
        status, output = command("train.py", *SMALL_DEMO, "trainer.max_epochs=1", "logger=csv", f"run_dir={folder}")
        assert status == 0 and "results.md" in output, output

    return shutil.copytree(once("commanded", make), tmp_path / "run")


def test_a_run_does_not_begin_in_the_folder_of_another(command, commanded):
    status, output = command("train.py", *SMALL_DEMO, f"run_dir={commanded}")
    assert status == 1
    assert "already holds a run" in output and "without a checkpoint" not in output


def test_a_run_that_failed_before_its_first_step_does_not_hold_its_folder(command, commanded):
    """The first of the two runs, see `commanded`; the second one has taken steps."""
    (commanded / "checkpoints" / "last.ckpt").unlink()
    status, output = command("train.py", *SMALL_DEMO, f"run_dir={commanded}")
    assert status == 1
    assert "already holds a run without a checkpoint" in output


def test_resuming_with_another_architecture_is_refused(command, commanded):
    status, output = command("train.py", f"resume={commanded}", "model.decoder_layers=2", "trainer.max_epochs=2")
    assert status == 1
    assert "n_layer was 1 and is 2" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=coco", "data.root=/nowhere"], "experiment=demo"),
        (["experiment=demo", "data.batch_size=0"], "data.batch_size=0 must be auto, or a whole number of at least 1"),
        (
            ["experiment=demo", "trainer.precision=17"],
            "trainer.precision=17 is none of auto, 32-true, 16-mixed, bf16-mixed",
        ),
        (["data=shapes", "model=vit_gpt2", "data.image_size=32"], "model.encoder"),
        (["experiment=demo", "decoding.max_new_tokens=1000"], "this model's limit of 127"),
        (["experiment=demo", "trainer.strategy=fsdp"], "trainer.strategy=fsdp is not supported: gradients are"),
    ],
)
def test_a_mistake_ends_in_one_sentence_before_any_training(command, tmp_path, arguments, said):
    few = ["data.train_pictures=64", "data.val_pictures=8", "data.test_pictures=4"]
    drawn = few if "experiment=demo" in arguments else []
    status, output = command("train.py", *drawn, *arguments, f"run_dir={tmp_path / 'run'}", "logger=csv")
    assert status == 1
    assert said in output
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # for the best checkpoint, which it lacks
def test_a_run_without_validation_ends_well(tmp_path):
    assert (
        "val/perplexity"
        not in train(demo(tmp_path, *PLAIN, "trainer.max_epochs=1", "trainer.limit_val_batches=0")).metrics
    )
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_run_folder_that_was_moved_resumes_with_its_best_checkpoint(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run.run_dir, moved)
    resumed = train(demo(moved, f"resume={moved}", "trainer.max_epochs=4"))
    best = Path(resumed.trainer.checkpoint_callbacks[0].best_model_path)
    assert best == moved / "checkpoints" / "best.ckpt"


def test_a_run_folder_that_cannot_be_made_is_refused(command, tmp_path):
    (tmp_path / "file").touch()
    status, output = command("train.py", "experiment=demo", f"run_dir={tmp_path / 'file' / 'run'}")
    assert status == 1
    assert "choose another folder with run_dir=" in output
    assert "Traceback" not in output


def test_the_commands_run_resumes_and_a_refused_resume_leaves_it_as_it_was(command, commanded):
    folder = commanded
    before = {path: path.read_bytes() for path in (folder / ".hydra").iterdir()}
    for change in ("data.batch_size=0", "model.decoder_width=64"):
        status, output = command("train.py", f"resume={folder}", change, "trainer.max_epochs=2")
        assert status == 1, output
        assert {path: path.read_bytes() for path in (folder / ".hydra").iterdir()} == before
    status, output = command("train.py", f"resume={folder}", "trainer.max_epochs=2", "data.batch_size=12")
    assert status == 0, output
    assert len(table_of(folder)) == 4
    status, output = command("train.py", f"resume={folder}", "trainer.max_epochs=3")
    assert status == 0, output
    assert "data.batch_size=12" in (folder / ".hydra" / "overrides.yaml").read_text(), "what it went on with is kept"
    status, output = command("train.py", f"resume={folder}", "trainer.max_epochs=2")
    assert status == 1
    assert "fewer than the 3 epochs" in output
    assert "trainer.max_epochs=3" in (folder / ".hydra" / "overrides.yaml").read_text()
    epochs = [row["epoch"] for row in rows_of(folder) if row["val/loss"]]
    assert epochs == ["0", "1", "2"]
    assert len([row for row in rows_of(folder) if row["test/loss"]]) == 1, "the last test alone"


def test_a_resumed_run_with_other_batches_trains_at_the_rates_of_its_epoch(tmp_path):
    train(demo(tmp_path, *PLAIN, "trainer.max_epochs=1"))
    changes = ("data.batch_size=4", "trainer.log_every_n_steps=1", "stage.warmup_steps=2", "stage.decay=none")
    changes += ("stage.learning_rates.encoder=1.5e-3",)
    train(demo(tmp_path, *PLAIN, f"resume={tmp_path}", *changes))
    rates = [float(row["lr/encoder"]) for row in rows_of(tmp_path) if row["epoch"] == "2" and row["lr/encoder"]]
    assert len(rates) == 12
    assert rates == pytest.approx([1.5e-3 / 3, 1.5e-3 * 2 / 3] + [1.5e-3] * 10)


def test_an_epoch_without_validation_shows_none(tmp_path):
    train(demo(tmp_path, *PLAIN, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"))
    lines = [line.split("|")[1:-1] for line in table_of(tmp_path)[2:]]
    assert [cells[0].strip() for cells in lines] == ["0", "1", "2", "3"]
    assert [cells[4].strip() == "-" for cells in lines] == [True, False, True, False]
    assert all(float(cells[1]) > 0 for cells in lines)
    assert [row["epoch"] for row in rows_of(tmp_path) if row["val/loss"]] == ["1", "3"]


def test_rows_of_steps_that_are_taken_again_are_replaced(tmp_path, monkeypatch):
    def stop(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultsTable, "on_train_batch_end", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(demo(tmp_path, *PLAIN))
    train(demo(tmp_path, *PLAIN, f"resume={tmp_path}"))
    assert [int(row["step"]) for row in rows_of(tmp_path) if row["train/loss"]] == [4, 6, 8, 12, 16, 18]


def test_switches_of_lightnings_trainer_are_heeded(tmp_path):
    off = ("trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false")
    train(demo(tmp_path, *PLAIN, "trainer.max_epochs=1", *off))
    assert not (tmp_path / "checkpoints").exists()


def test_a_profile_lies_in_the_run_folder(command, tmp_path):
    status, output = command("train.py", *SMALL_DEMO, "debug=profile", *PLAIN, f"run_dir={tmp_path / 'run'}")
    assert status == 0, output
    assert "profile: " in output
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


BARELY = "stage.learning_rates={cross_attention:1e-12,decoder:1e-12,encoder:1e-12}"
ONE_EPOCH = (
    *PLAIN,
    "trainer.max_epochs=1",
    "data.max_tokens=40",
    "decoding.max_new_tokens=8",
)


def test_fine_tuning_starts_from_the_weights_architecture_and_tokenizer_of_a_run(run, tmp_path):
    other_sizes = ("model.decoder_width=64", "model.image_size=64", "model.patch_size=8", "data.train_pictures=40")
    tuned = train(demo(tmp_path, *ONE_EPOCH, BARELY, *other_sizes, f"model.init_from={run.run_dir}"))
    best = torch.load(run.run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    assert tuned.module.state_dict().keys() == best["state_dict"].keys()
    for name, value in tuned.module.state_dict().items():
        torch.testing.assert_close(value, best["state_dict"][name], atol=1e-8, rtol=0)
    assert tuned.datamodule.tokenizer.to_json() == best["captioner"]["tokenizer"]
    assert tuned.datamodule.splits["val"].load(0).size == (48, 48), "as the weights want it"


def test_fine_tuning_a_model_of_transformers_keeps_its_own_tokens_and_resumes_without_it(tmp_path):
    model = saved_model(tmp_path / "model", own_tokens=True, encoder_width=48)
    overrides = (*ONE_EPOCH, f"model.init_from={model}", "model.dropout=0.1")
    tuned = train(demo(tmp_path / "run", *overrides))
    tokenizer = tuned.datamodule.tokenizer
    assert tokenizer.bos_token_id != tokenizer.eos_token_id
    assert tuned.module.captioner.vocab_size > tokenizer.vocab_size
    shutil.rmtree(model)
    resumed = train(demo(tmp_path / "run", *overrides, f"resume={tmp_path / 'run'}", "trainer.max_epochs=2"))
    assert resumed.trainer.current_epoch == 2
    assert resumed.module.captioner.network.decoder.transformer.drop.p == 0.1
    captioner, again = load_captioner(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (again.bos_token_id, again.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert captioner.network.decoder.config.eos_token_id == tokenizer.eos_token_id


def test_fine_tuning_with_pretrained_halves_in_the_configuration_needs_neither(tmp_path):
    model = saved_model(tmp_path / "model")
    config = configured(
        TrainConfig,
        *("data=shapes", "model=vit_gpt2", "stage=full", "trainer=cpu", *ONE_EPOCH),
        *("data.train_pictures=16", "data.val_pictures=4", "data.test_pictures=2", "data.batch_size=8"),
        *(f"run_dir={tmp_path / 'run'}", f"model.init_from={model}", "model.image_size=32"),
    )
    captioner = train(config).module.captioner
    assert captioner.picture_format.size == (32, 32), "its position embeddings are interpolated"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.init_from={folder}"], "holds no checkpoints/best.ckpt or checkpoints/last.ckpt, and no config.json"),
        (["model.init_from=x", "model.decoder_width=8"], "model.decoder_width comes from model.init_from=x; leave one"),
        (["model.init_from=x", "data.tokenizer=gpt2"], "data.tokenizer comes from model.init_from=x; leave one"),
    ],
)
def test_a_start_that_cannot_be_is_told_in_a_sentence(command, tmp_path, arguments, said):
    given = [argument.format(folder=tmp_path) for argument in arguments]
    status, output = command("train.py", "experiment=demo", f"run_dir={tmp_path / 'run'}", *given)
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert said in line


class Counted(L.Callback):
    """A user's own."""

    def __init__(self, of: str):
        self.of, self.batches = of, 0

    def on_train_batch_end(self, *_):
        self.batches += 1


SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "scores.pictures=0", "trainer.val_check_interval=1")


def test_a_users_callbacks_and_plugins_join_ours(tmp_path, caplog):
    given = [f"+callbacks.mine={{_target_: {__name__}.Counted, of: group}}", "callbacks=model_summary"]
    given += [f"trainer.callbacks=[{{_target_: {__name__}.Counted, of: list}}]"]
    given += ["trainer.plugins=[{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]"]
    run = train(composed(tmp_path, *given, *SHORT))
    assert [(c.of, c.batches) for c in run.trainer.callbacks if isinstance(c, Counted)] == [("group", 2), ("list", 2)]
    kinds = [type(callback).__name__ for callback in run.trainer.callbacks]
    assert "ModelSummary" in kinds and kinds[-2:] == ["BestCheckpoint", "LastCheckpoint"]
    assert type(cluster_environment(run.trainer)).__name__ == "LightningEnvironment"
    assert "captioner.network.decoder" in caplog.text, "the summary's third level"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("trainer.callbacks=[{_target_: nowhere.Nothing}]", "trainer cannot be set up so: Error loading 'nowhere.No"),
        ("+callbacks.mine={_target_: nowhere.Nothing}", "callbacks.mine cannot be set up so: Error loading 'nowhere"),
        ("+callbacks.mine={_target_: builtins.dict}", "callbacks.mine is a dict, and no lightning.Callback; name the"),
        ("trainer.limit_train_batches=0.1", "trainer.limit_train_batches=0.1 is less than one of the 8 batches of t"),
        ("trainer.limit_test_batches=0.1", "trainer.limit_test_batches=0.1 is less than one of the 1 batches of te"),
        ("trainer.val_check_interval=5000", "trainer.val_check_interval=5000 is more than the 2 batches of an epoch"),
        ("trainer.strategy=ddp_nothing", "trainer cannot be set up so: "),
        ("trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}", "trainer.strategy={_target_:"),
        ("+trainer.nonsense=3", "trainer cannot be set up so: "),
    ],
)
def test_what_lightning_objects_to_is_a_sentence_before_training(tmp_path, given, said):
    with pytest.raises(UserError, match="^" + re.escape(said)) as raised:
        train(composed(tmp_path, *SHORT, given))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_split_of_fewer_pictures_than_processes_is_refused_before_training(tmp_path):
    datamodule = built(composed(tmp_path, *SHORT, "data.test_pictures=1").data, "data")
    tokenizer = datamodule.new_tokenizer()
    datamodule.connect(tokenizer, PictureFormat((16, 16)), 128)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    limits = dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 1.0)
    trainer = SimpleNamespace(world_size=2, global_rank=0, num_nodes=1, strategy=device, **limits)
    with pytest.raises(UserError, match="test has 1 pictures, too few for a batch of each of 2 processes"):
        check_limits(trainer, datamodule)


def test_what_lightning_objects_to_only_in_a_fit_is_a_sentence_too(tmp_path):
    early = "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: nothing}"
    with pytest.raises(SystemExit, match=r"error: Lightning objects: Early stopping .*nothing"), one_sentence_errors():
        train(composed(tmp_path, *SHORT, early))


def test_without_checkpoints_a_run_says_what_it_cannot(tmp_path, caplog):
    train(composed(tmp_path, *SHORT, "checkpoints=false"))
    assert "no checkpoints are written: this run cannot be resumed" in caplog.text
    assert not (tmp_path / "checkpoints").exists()


class Stops(L.Callback):
    """Ends the run in the middle of its first step of two batches."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


@pytest.mark.parametrize("limit", ["trainer.max_steps=1", f"+callbacks.stops={{_target_: {__name__}.Stops}}"])
def test_a_run_that_ends_in_mid_epoch_goes_on_there(tmp_path, caplog, limit):
    """How such a checkpoint resumes is tested above."""
    train(composed(tmp_path, limit, "scores.pictures=0"))
    last = read_checkpoint(tmp_path / LAST)
    assert last["global_step"] == 1 and unfinished_epoch(last) == 2, "batches, the whole step"
    said = "max_steps=1 ends the run before its first validation, after 3 batches: it will have no best"
    assert (said in caplog.text) == ("max_steps" in limit)


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (
            "GradientAccumulationScheduler, scheduling: {0: 2}",
            "callbacks.mine is a GradientAccumulationScheduler, which",
        ),
        (
            "EMAWeightAveraging",
            "callbacks.mine is a WeightAveraging, which is not taken: it tests best.ckpt with other",
        ),
        (
            "StochasticWeightAveraging, swa_lrs: 0.1",
            "callbacks.mine is a StochasticWeightAveraging, which is not taken",
        ),
    ],
)
def test_callbacks_that_would_change_what_a_step_or_a_weight_is_are_refused_by_name(tmp_path, callback, said):
    config = composed(tmp_path, f"+callbacks.mine={{_target_: lightning.pytorch.callbacks.{callback}}}")
    with pytest.raises(UserError, match=said):
        users_callbacks(config)


def test_a_finished_run_says_so_and_a_resumed_one_from_where_and_what_changes(command, commanded):
    before = rows_of(commanded)
    status, output = command("train.py", f"resume={commanded}")
    assert status == 0 and "has come to its end (trainer.max_epochs=1): nothing is left to do; more: python" in output
    assert f"resume={commanded} trainer.max_epochs=4" in output and rows_of(commanded) == before
    status, output = command("train.py", f"resume={commanded}", "trainer.max_epochs=2", "optimizer.weight_decay=0.5")
    assert status == 0 and "going on from epoch 1, after step 6" in output
    assert "optimizer.weight_decay was 0.01 and is 0.5; " in output and "trainer.max_epochs was 1 and is 2" in output
