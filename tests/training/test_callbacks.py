"""Seeds for dropout, averaged weights, the encoder out of a run's steps, and captions scored while a model trains."""

import csv
import json
import math
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small_runs import SMALL_DEMO, composed, configured, rows_of
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from captioning.config import TrainConfig
from captioning.data.batch import pack
from captioning.evaluation.scoring import score, variety_of, words_of
from captioning.metrics import caption_scores
from captioning.model.build import load_captioner
from captioning.model.captioner import ImageCaptioner, group_of
from captioning.model.generation import Greedy, generate
from captioning.randomness import addressed_seed
from captioning.runs import AVERAGE, read_checkpoint
from captioning.training.callbacks import AddressedDropout, AveragedWeights, CaptionScores
from captioning.training.module import CaptioningModule
from captioning.training.optimizers import adamw
from captioning.training.run import model_and_data, train


def masks(epoch=0, batch=0, rank=0, seed=1):
    torch.manual_seed(int(torch.randint(1000, ())))  # whatever was drawn before
    callback = AddressedDropout(partial(addressed_seed, seed, "dropout"))
    callback.on_train_batch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None, None, batch)
    return torch.nn.functional.dropout(torch.ones(50)).tolist()


def test_a_place_in_the_run_has_its_own_masks_whatever_was_drawn_before():
    assert masks(1, 2) == masks(1, 2)
    different = [masks(), masks(epoch=1), masks(batch=1), masks(rank=1), masks(seed=2)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


def averaged(steps, accumulated=1):
    """A module whose weights take random steps, what trains in turn; with our average and torch's."""
    torch.manual_seed(0)
    module = CaptioningModule(small_captioner(300), optimizer=adamw, checkpoint_extras={})
    ours, trainer = AveragedWeights(0.6), SimpleNamespace(global_step=0)
    theirs = AveragedModel(
        module.captioner,
        avg_fn=lambda average, weight, n: average + (1 - min(0.6, (1 + n) / (10 + n))) * (weight - average),
    )
    theirs.update_parameters(module.captioner)  # the first weights
    for batch in range(steps * accumulated):
        module.captioner.set_trainable(("cross_attention",) if batch < 3 else ("cross_attention", "decoder", "encoder"))
        ours.on_train_batch_start(trainer, module, None, batch)
        if (batch + 1) % accumulated == 0:
            with torch.no_grad():
                for weight in module.captioner.parameters():
                    weight.add_(0.1 * torch.randn_like(weight) * weight.requires_grad)
            trainer.global_step += 1
            theirs.update_parameters(module.captioner)
        ours.on_train_batch_end(trainer, module)
    return module, ours, trainer, theirs


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_average_is_torchs_over_the_same_steps_also_of_what_trains_later(accumulated):
    module, ours, trainer, theirs = averaged(12, accumulated)
    ours.on_validation_start(trainer, module)
    for name, expected in theirs.module.state_dict().items():
        torch.testing.assert_close(module.captioner.state_dict()[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_what_is_saved_within_a_validation_has_the_weights_and_the_average_each_under_its_key():
    module, ours, trainer, _ = averaged(6)
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}

    def require_both(weights_now):
        checkpoint = {"state_dict": dict(weights_now)}
        ours.on_save_checkpoint(trainer, module, checkpoint)
        assert all(torch.equal(checkpoint["state_dict"][name], weight) for name, weight in weights.items())
        assert checkpoint[AVERAGE]["steps"] == 6 and checkpoint[AVERAGE]["weights"].keys() == weights.keys()

    ours.on_validation_start(trainer, module)
    head = "captioner.network.decoder.lm_head.weight"
    assert not torch.equal(module.state_dict()[head], weights[head]), "the average is in its place"
    require_both(module.state_dict())
    ours.on_validation_end(trainer, module)
    require_both(module.state_dict())


def test_what_never_trains_costs_no_average():
    _, ours, _, _ = averaged(3)
    assert ours.averages and all(
        group_of(name.removeprefix("captioner.network.")) == "cross_attention" for name in ours.averages
    )


def test_the_best_average_is_what_was_validated_is_tested_and_makes_captions(whole):
    best = read_checkpoint(whole / "checkpoints" / "best.ckpt")
    captioner, _ = load_captioner(whole / "checkpoints" / "best.ckpt")
    for name, weight in captioner.state_dict().items():
        assert torch.equal(
            weight, best[AVERAGE]["weights"].get(f"captioner.{name}", best["state_dict"][f"captioner.{name}"])
        )
    datamodule = model_and_data(composed(whole), whole / "checkpoints" / "best.ckpt")[1]
    rows = rows_of(whole)
    for split, found in (
        ("val", min(float(row["val/loss"]) for row in rows if row["val/loss"])),
        ("test", next(float(row["test/loss"]) for row in rows if row["test/loss"])),
    ):
        with torch.no_grad():
            losses = [captioner.loss(batch) for batch in getattr(datamodule, f"{split}_dataloader")()]
        mean = sum(float(loss.nats) for loss in losses) / sum(int(loss.tokens) for loss in losses)
        assert mean == pytest.approx(found, rel=1e-5), split


ENCODED = [
    "experiment=demo",
    "stage=decoder",
    "data.train_pictures=24",
    "data.val_pictures=6",
    "data.test_pictures=4",
    "data.batch_size=8",
    "model.encoder_width=48",  # other than the decoder's: the projection trains, and so comes after the cache
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "stage.warmup_steps=2",
    "logger=csv",
]


def encoded_run(run_dir, *overrides):
    return train(configured(TrainConfig, *ENCODED, f"run_dir={run_dir}", *overrides))


def losses(made):
    """Every logged training and validation loss, and the test's."""
    with (made.run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss", "test/loss") if row[name]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return encoded_run(tmp_path_factory.mktemp("plain"))


def test_a_float32_cache_changes_no_loss(plain, tmp_path):
    cached = encoded_run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}", "encoder_cache_dtype=float32")
    assert len(losses(plain)) == 6 + 2 + 1
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-6)


def test_a_bfloat16_cache_changes_the_losses_by_less_than_a_thousandth(plain, tmp_path):
    cached = encoded_run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}")
    assert losses(cached) != losses(plain)
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-3)


def test_every_picture_is_encoded_once_and_never_in_a_step(tmp_path, monkeypatch):
    encoded = []
    encoder_states = ImageCaptioner.encoder_states
    monkeypatch.setattr(
        ImageCaptioner,
        "encoder_states",
        lambda self, pixels: encoded.append(len(pixels)) or encoder_states(self, pixels),
    )
    cache = f"encoder_cache={tmp_path / 'cache'}"
    encoded_run(tmp_path / "first", cache)
    assert sum(encoded) == 24 + 6 + 4
    encoded.clear()
    encoded_run(tmp_path / "second", cache, "data.train_pictures=26")
    assert sum(encoded) == 2, "the new ones"


def test_the_table_of_pictures_still_shows_pictures_and_captions(tmp_path):
    encoded_run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}", "logger=wandb", "sample_pictures=2")
    tables = sorted((tmp_path / "run").glob("wandb/offline-run-*/files/media/table/val/samples*.json"))
    rows = json.loads(tables[-1].read_text())["data"]
    assert len(rows) == 2 and all(row[1] and row[2] for row in rows)
    assert all(math.isfinite(row[-1]) for row in rows)


def test_a_resumed_run_is_served_by_the_encoder_of_its_checkpoint(tmp_path):
    cache = f"encoder_cache={tmp_path / 'cache'}"
    first = encoded_run(tmp_path / "run", "trainer.max_epochs=1")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if "network.encoder." in name:
            weight.add_(0.05)  # as if an earlier stage had trained it
    torch.save(checkpoint, path)
    resumed = encoded_run(tmp_path / "run", f"resume={tmp_path / 'run'}", cache, "encoder_cache_dtype=float32")
    batch = next(iter(resumed.datamodule.val_dataloader()))
    pixels = torch.stack(list(resumed.datamodule.rows("val").pixels_of(range(len(batch))).values()))
    captioner = resumed.module.captioner
    assert torch.equal(
        captioner.network.state_dict()["encoder.layernorm.bias"],
        checkpoint["state_dict"]["captioner.network.encoder.layernorm.bias"],
    )
    torch.testing.assert_close(batch.encoder_hidden_states, captioner.encoder_states(pixels))
    assert first.module.captioner.encoder_fingerprint() != captioner.encoder_fingerprint()


def test_a_cache_that_cannot_be_written_is_refused_in_a_sentence_with_the_way_out(command, tmp_path):
    status, output = command("train.py", *ENCODED, f"run_dir={tmp_path / 'run'}", "encoder_cache=/proc/nowhere")
    assert status == 1
    assert "name another folder in encoder_cache" in output and "Traceback" not in output


SHORT = ["trainer.max_epochs=2", "sample_pictures=0", "logger=csv"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return train(demo(tmp_path_factory.mktemp("start"), *SHORT, "stage.best_by=val/cider"))


def demo(run_dir, *overrides):
    return composed(run_dir, *overrides, run=SMALL_DEMO)


def callback_of(rows, references, tokenizer, **changed):
    settings = {"every_n_epochs": 1, "before_training": False} | changed
    batches = lambda: DataLoader(rows, batch_size=2, collate_fn=pack)  # noqa: E731
    return CaptionScores(batches, references, Greedy(12), tokenizer.decode, **settings)


def module_of(tokenizer):
    captioner = small_captioner(tokenizer.vocab_size, spread=0.5)
    return CaptioningModule(
        captioner, optimizer=partial(adamw, weight_decay=0.0, betas=(0.9, 0.99)), checkpoint_extras={}
    )


def trainer_of(world_size=1):
    return SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext), world_size=world_size)


def test_the_scores_are_those_of_the_captions_that_the_model_makes():
    tokenizer = trained_tokenizer()
    rows = encoded_rows(tokenizer, [[CAPTIONS[i]] for i in range(5)])
    references = {number: [CAPTIONS[number], CAPTIONS[number + 1]] for number in range(5)}
    module = module_of(tokenizer)
    found = callback_of(rows, references, tokenizer).scores(trainer_of(), module)
    captions = generate(module.captioner, pack(rows).pixel_values, Greedy(12))
    texts = {number: tokenizer.decode(caption.token_ids) for number, caption in enumerate(captions)}
    expected = score(texts, references).corpus
    distinct = found.pop("val/distinct")
    assert distinct == len(set(texts.values())) / len(texts)
    assert found.pop("val/vocabulary") == variety_of(list(texts.values()))["vocabulary"]
    training = [[texts[0].upper() + "!"], [texts[1] + " more"]]
    again = callback_of(rows, references, tokenizer, training=training).scores(trainer_of(), module)
    others = sum(words_of(text) != words_of(texts[0]) for text in texts.values())
    assert again["val/novel"] == others / len(texts) and "val/novel" not in found
    assert found == {f"val/{name.lower()}": figure for name, figure in expected.items()}


def test_ranks_score_the_captions_of_all(monkeypatch):
    """Two ranks with a part of the pictures each compute what one process with all of them does."""
    tokenizer = trained_tokenizer()
    rows = encoded_rows(tokenizer, [[CAPTIONS[i]] for i in range(5)])
    references = {number: [CAPTIONS[number], CAPTIONS[number + 1]] for number in range(5)}
    module = module_of(tokenizer)
    whole = callback_of(rows, references, tokenizer).scores(trainer_of(), module)
    told = []

    def gather(gathered, mine):  # each rank's own, as torch.distributed.all_gather_object fills it in
        told.append(mine)
        gathered[: len(told)] = told

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for share in (rows[0::2], rows[1::2]):
        found = callback_of(share, references, tokenizer).scores(trainer_of(world_size=2), module)
    assert found == pytest.approx(whole)


def test_scores_are_logged_after_every_epoch_and_shown_in_the_table(start):
    logged = [row for row in rows_of(start.run_dir) if row["val/cider"]]
    assert [row["epoch"] for row in logged] == ["0", "1"]
    assert all(row[one.name] for row in logged for one in caption_scores(with_java=False).values())
    assert "Val CIDEr" in (start.run_dir / "results.md").read_text()


def test_a_checkpoint_can_be_chosen_by_a_score(start):
    best = start.trainer.checkpoint_callbacks[0]
    logged = [float(row["val/cider"]) for row in rows_of(start.run_dir) if row["val/cider"]]
    assert best.monitor == "val/cider" and best.mode == "max"
    assert start.metrics["best/val/cider"] == pytest.approx(max(logged), abs=1e-6)


def test_scores_can_come_every_other_epoch(tmp_path):
    run = train(demo(tmp_path, *SHORT, "trainer.max_epochs=3", "scores.every_n_epochs=2", "stage.best_by=val/cider"))
    assert [row["epoch"] for row in rows_of(tmp_path) if row["val/cider"]] == ["1"]
    assert run.trainer.checkpoint_callbacks[0].best_model_path


def test_scores_can_be_left_out(tmp_path):
    run = train(demo(tmp_path, *SHORT, "trainer.max_epochs=1", "scores.pictures=0"))
    assert not [name for name in run.metrics if "cider" in name]
    assert "CIDEr" not in (tmp_path / "results.md").read_text()


def test_self_critical_training_goes_on_from_a_run_and_starts_its_curve_there(start, tmp_path):
    sizes = ["data.train_pictures=24", "data.val_pictures=8", "data.test_pictures=4", "scores.pictures=8"]
    given = ["experiment=demo_scst", f"model.init_from='{start.run_dir}'", f"run_dir='{tmp_path}'"]
    run = train(configured(TrainConfig, *given, *sizes, *SHORT))
    rows = rows_of(tmp_path)
    assert rows[0]["step"] == "0" and float(rows[0]["val/cider"]) >= 0, "before the first step"
    rewards = [float(row["train/reward_epoch"]) for row in rows if row.get("train/reward_epoch")]
    assert len(rewards) == 2 and all(math.isfinite(reward) for reward in rewards)
    assert "train/perplexity" not in rows[0] and "best/val/cider" in run.metrics


def test_each_picture_is_scored_once_and_brings_all_its_captions(start):
    batches = list(start.datamodule.whole_pictures("val", 5))
    pictures = [picture for batch in batches for picture in batch.image_ids]
    assert len(pictures) == len(set(pictures)) == 5
    assert sum(batch.caption_count for batch in batches) == sum(
        len(start.datamodule.references("val")[picture]) for picture in pictures
    )
