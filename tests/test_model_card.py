"""What an exported model says of itself."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from captioning.export.card import RunRecord, model_card

CONFIG = {
    "run_dir": "runs/${now:%Y}",
    "seed": 7,
    "data": {
        "_target_": "captioning.data.datamodule.PhotographDataModule",
        "dataset": "coco",
        "fraction": 0.3,
        "batch_size": 16,
        "captions_per_image": 5,
        "max_tokens": 64,
        "augmentation": {"flip": True, "brightness": 0.1},
    },
    "model": {"init_from": None, "encoder": "google/vit-base-patch16-224-in21k", "decoder": "gpt2"},
    "stage": {
        "phases": [{"from_epoch": 0, "train": ["cross_attention"]}, {"from_epoch": 1, "train": ["decoder", "encoder"]}],
        "learning_rates": {"cross_attention": 3e-4, "decoder": 5e-5},
        "warmup_steps": 500,
    },
    "trainer": {"max_epochs": 5, "precision": "bf16-mixed"},
}


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(CONFIG)))
    (tmp_path / "results.md").write_text("| Epoch | Train Loss |\n|---:|---:|\n| 0 | 1.2345 |\n")
    (tmp_path / "metrics.csv").write_text("step,val/perplexity,test/perplexity\n1,9.5,\n2,8.25,\n3,8.5,\n3,,8.75\n")
    signature = {"tokenizer": "ptb-3.4.1", "eos": "not counted", "pictures": 5000}
    settings = {"split": "val", "checkpoint": "/home/someone/runs/secret"}
    scores = {"CIDEr": 1.125, "Bleu_4": 0.34, "signature": signature, "settings": settings}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    return tmp_path


def card_of(run: Path | None) -> ModelCard:
    return ModelCard(model_card(RunRecord(run), "my/model", 1_234_567, "vit", "gpt2"))


def test_its_front_matter_is_what_the_hub_reads(run):
    data = card_of(run).data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-to-text"
    assert data["datasets"] == ["coco"]
    assert data["base_model"] == ["google/vit-base-patch16-224-in21k", "gpt2"]
    assert data["metrics"] == ["Bleu_4", "CIDEr"]


def test_it_tells_data_recipe_and_scores(run):
    text = card_of(run).text
    for row in (
        "| data | coco, fraction 0.3 |",
        "| stage | from epoch 0: cross_attention; from epoch 1: decoder, encoder, warmup steps 500 |",
        "| epochs | max epochs 5 |",
        "| batch | batch size 16, precision bf16-mixed |",
        "| learning rates | cross_attention 0.0003, decoder 5e-05 |",
        "| augmentation | flip True, brightness 0.1 |",
        "| CIDEr | 1.1250 |",
        "| tokenizer | ptb-3.4.1 |",
        "| eos | not counted |",
        "| scores are of | val |",
        "| lowest validation perplexity of the run | 8.2500 |",
        "| test perplexity | 8.7500 |",
        "| 0 | 1.2345 |",
        "1.2 million parameters",
    ):
        assert row in text, row
    assert 'name = "my/model"' in text and "predict.py checkpoint=my/model" in text


def test_no_path_of_the_scores_settings_is_published(run):
    assert "secret" not in card_of(run).text


def test_a_run_that_fine_tuned_names_what_it_started_from(run):
    config = OmegaConf.create(CONFIG)
    config.model.init_from = "nlpconnect/vit-gpt2-image-captioning"
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    card = card_of(run)
    assert card.data.to_dict()["base_model"] == ["nlpconnect/vit-gpt2-image-captioning"]
    assert "| fine-tuned from | init from nlpconnect/vit-gpt2-image-captioning |" in card.text
    assert "pretrained halves" not in card.text


def test_weights_without_a_run_still_have_a_card():
    card = card_of(None)
    assert "datasets" not in card.data.to_dict() and "## Scores" not in card.text and "## Use" in card.text


def test_a_data_module_of_ones_own_is_named_by_its_package(run):
    config = OmegaConf.create(CONFIG)
    config.data = {"_target_": "my_pkg.MyData", "batch_size": 4}
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    card = card_of(run)
    assert card.data.to_dict()["datasets"] == ["my_pkg"] and "| data | my_pkg |" in card.text
