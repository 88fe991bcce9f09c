"""Every key of conf/ is known, with its type and range, and a wrong value is one clear sentence."""

import inspect
import re
from itertools import product

import pytest
from conftest import ROOT
from lightning import Trainer
from omegaconf import OmegaConf
from small_runs import composition

from captioning.cli import parsed_override
from captioning.config import INSTEAD, KINDS, checked, fields_of
from captioning.errors import UserError

CONF = ROOT / "conf"
FROM = {"predict": ["checkpoint=runs/mine", "input=photos"]}  # what a command cannot do without
SCST = ["experiment=demo_scst", "model.init_from=runs/mine"]


def composed(name, *overrides):
    return composition(name, *FROM.get(name, []), *overrides)


def changed(name, chosen, changes):
    """The configuration of these choices, in which keys are then set as a command line would."""
    config = composed(name, *chosen)
    for change in changes:
        override = parsed_override(change)
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def sentence(name, chosen, *changes):
    with pytest.raises(UserError) as refused:
        checked(changed(name, chosen, changes), KINDS[name])
    assert "\n" not in str(refused.value)
    return str(refused.value)


DRAWN = ["data=shapes", "model=tiny"]
AUGMENTATION = "data.augmentation"
PHASES = "[{from_epoch: 0, train: [cross_attention]}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.batch_size=abc", "data.batch_size=abc must be auto, or a whole number of at least 1"),
        ("data.batch_size=0", "data.batch_size=0 must be auto, or a whole number of at least 1"),
        ("data.batch_size=true", "data.batch_size=true must be auto, or a whole number of at least 1"),
        ("data.batch_size=null", "data.batch_size=null must be auto, or a whole number of at least 1"),
        ("data.batch_size=1.5", "data.batch_size=1.5 must be auto, or a whole number of at least 1"),
        ("data.captions_per_image=0", "data.captions_per_image=0 must be a whole number of at least 1"),
        ("data.max_tokens=1", "data.max_tokens=1 must be a whole number of at least 2"),
        ("data.num_workers=-1", "data.num_workers=-1 must be auto, or a whole number of at least 0"),
        ("data.overfit_images=0", "data.overfit_images=0 must be a whole number of at least 1, or null"),
        ("data.fraction=0", "data.fraction=0 must be a number above 0 and at most 1"),
        ("data.fraction=half", "data.fraction=half must be a number above 0 and at most 1"),
        ("data.fraction=true", "data.fraction=true must be a number above 0 and at most 1"),
        ("data.use_restval=maybe", "data.use_restval=maybe must be true or false"),
        ("data.on_missing=maybe", "data.on_missing=maybe is none of error, skip"),
        ("data.root=null", "data.root=null must be a folder; set data.root=PATH"),
        ("data.root=''", "data.root= must be a folder; set data.root=PATH"),
        ("data.tokenizer=[a]", "data.tokenizer=[a] must be text, or null"),
        ("data.root='${nowhere}'", "data.root cannot be read: Interpolation key 'nowhere' not found; "
         "${ begins a reference to another key"),
        *(
            (f"{AUGMENTATION}.crop_scale={value}", f"{AUGMENTATION}.crop_scale={value} must be null or two parts of "
             "the area in rising order, above 0 and at most 1, for example [0.7,1.0]")
            for value in ("0.5", "[0.5]", "[0,1]", "[0.9,0.5]", "[0.5,1.5]", "[0.5,true]", "[a,b]", "yes")
        ),
        *(
            (f"{AUGMENTATION}.{key}={value}", f"{AUGMENTATION}.{key}={value} must be a number from 0 (off) to below 1")
            for key, value in product(("brightness", "contrast"), ("1", "-0.1", "true", "null", "a"))
        ),
        (f"{AUGMENTATION}.flip=1", f"{AUGMENTATION}.flip=1 must be true or false"),
        ("seed=-1", "seed=-1 must be a whole number from 0 to 4294967295"),
        ("trainer.max_epochs=many", "trainer.max_epochs=many must be a whole number of at least 1"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be a whole number of at least 1"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 must be a whole number of at least 1"),
        ("trainer.accelerator=gup", "trainer.accelerator=gup is none of auto, cpu, gpu, cuda, mps; did you mean gpu?"),
        ("trainer.devices=0.5", "trainer.devices=0.5 must be auto, a number of devices, or a list of them"),
        ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5 must be a whole number of at least 0, or a "
         "number from 0 to 1, or null"),
        ("sample_pictures=-1", "sample_pictures=-1 must be a whole number of at least 0"),
        ("scores.pictures=-1", "scores.pictures=-1 must be a whole number of at least 0"),
        ("scores.every_n_epochs=0", "scores.every_n_epochs=0 must be a whole number of at least 1"),
        ("max_skipped_steps=-1", "max_skipped_steps=-1 must be a whole number of at least 0"),
        ("seed=1.5", "seed=1.5 must be a whole number from 0 to 4294967295"),
        ("early_stopping_epochs=true", "early_stopping_epochs=true must be a whole number of at least 1, or null"),
        ("early_stopping_epochs=0", "early_stopping_epochs=0 must be a whole number of at least 1, or null"),
        *(
            (f"ema_decay={value}", f"ema_decay={value} must be null, or a number between 0 and 1 such as 0.999")
            for value in ("0", "1", "1.5", "yes")
        ),
        ("encoder_cache_dtype=half", "encoder_cache_dtype=half is none of bfloat16, float32"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1 must be a number from 0 to below 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be two numbers from 0 to below 1, such as [0.9,0.999]"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas=[0.9,1] must be two numbers from 0 to below 1, such as "
         "[0.9,0.999]"),
        *(
            (f"checkpoints.every_minutes={value}", f"checkpoints.every_minutes={value} must be a number above 0, or "
             "null")
            for value in ("0", "-1", "often", "true")
        ),
        ("checkpoints.every_n_steps=0", "checkpoints.every_n_steps=0 must be a whole number of at least 1, or null"),
        ("checkpoints.on_error=ignore", "checkpoints.on_error=ignore is none of stop, continue"),
        ("model.encoder=null", "model.encoder=null must be a hub name or a local folder"),
        ("model.image_size=0", "model.image_size=0 must be a whole number of at least 1, or null"),
        *(
            (f"model.dropout={value}", f"model.dropout={value} must be a number from 0 to below 1")
            for value in ("1", "-0.5", "true", "much")
        ),
        ("logger.wandb.project=a/b", "logger.wandb.project=a/b must be a name of at most 128 characters, none of them "
         "/ \\ # ? % or :"),
        ("logger.mine=3", "logger.mine=3 must be a section of keys"),
        ("trainer.logger=false", "trainer.logger=false is not taken: the group logger chooses them; logger=csv writes "
         "metrics.csv alone, which each run needs to resume"),
        ("trainer.overfit_batches=1", "trainer.overfit_batches=1 is not taken: it would train on other pictures in "
         "each epoch; data.overfit_images=8 keeps to so many"),
        ("trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_algorithm=value is not taken: gradients are "
         "clipped by their norm, trainer.gradient_clip_val=1.0; leave it out"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 must be a whole number of at least 1, or a "
         "number above 0 and at most 1, or null"),
        ("trainer.callbacks=[mine]", "trainer.callbacks=[mine] must be a list of mappings, each with a _target_, such "
         "as [{_target_: my_module.MyClass, size: 3}]"),
        ("nothing=3", "there is no key nothing; conf/ lists them all"),
        ("data.images=3", "there is no key data.images; conf/ lists them all"),
        ("stage.decay=cosin", "stage.decay=cosin is none of cosine, linear, none; did you mean cosine?"),
        ("stage.warmup_steps=-1", "stage.warmup_steps=-1 must be a whole number of at least 0"),
        ("stage.best_by=val/cidre", "stage.best_by=val/cidre is none of val/perplexity, val/bleu_1, val/bleu_2, "
         "val/bleu_3, val/bleu_4, val/rouge_l, val/cider; did you mean val/cider?"),
        ("stage.learning_rates.decoder=0", "stage.learning_rates.decoder=0 must be a number above 0"),
        ("stage.learning_rates.decoder=null", "stage.learning_rates.decoder is missing, and decoder trains from epoch "
         "1; give it a number above 0"),
        ("stage.phases=[]", "stage.phases=[] must be a list of phases, such as " + PHASES + "]"),
        ("stage.phases=3", "stage.phases=3 must be a list of phases, such as " + PHASES + "]"),
        (f"stage.phases={PHASES.replace('0', '1')}]", "stage.phases must start at from_epoch 0 and go on in increasing "
         "order, not [1]"),
        (f"stage.phases={PHASES},{PHASES[1:]}]", "stage.phases must start at from_epoch 0 and go on in increasing "
         "order, not [0, 0]"),
        ("stage.phases=[{from_epoch: 0, train: [decodr]}]", "stage.phases.0.train=[decodr] must be a list of some of "
         "cross_attention, decoder, encoder"),
        ("stage.phases=[{from_epoch: 0, train: decoder}]", "stage.phases.0.train=decoder must be a list of some of "
         "cross_attention, decoder, encoder"),
        ("stage.phases=[{from_epoch: 0, train: []}]", "stage.phases trains nothing from epoch 0; it must name some of "
         "cross_attention, decoder, encoder"),
        ("stage.phases=[{from_epoch: 0}]", "stage.phases.0.train is missing: The groups that train."),
        ("stage.phases=[{from_epoch: a, train: [decoder]}]", "stage.phases.0.from_epoch=a must be a whole number of at "
         "least 0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_one_sentence(change, said):
    assert sentence("train", [], change) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.encoder_width=127", "model.encoder_width=127 must be a multiple of model.encoder_heads=4"),
        ("model.decoder_heads=3", "model.decoder_width=128 must be a multiple of model.decoder_heads=3"),
        ("model.image_size=60", "model.image_size=60 must be a multiple of model.patch_size=8"),
        ("model.patch_size=0", "model.patch_size=0 must be a whole number of at least 1"),
        ("model.decoder_layers=two", "model.decoder_layers=two must be a whole number of at least 1"),
        ("model.initializer_range=0", "model.initializer_range=0 must be a number above 0"),
        ("model.pixel_std=-1", "model.pixel_std=-1 must be a number above 0"),
        ("data.image_size=0", "data.image_size=0 must be a whole number of at least 1, or null"),
        ("data.train_pictures=0", "data.train_pictures=0 must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_so_are_values_of_drawn_data_and_small_models(change, said):
    assert sentence("train", DRAWN, change) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stage.self_critical.samples=1", "stage.self_critical.samples=1 must be a whole number of at least 2"),
        ("stage.self_critical.max_new_tokens=1", "stage.self_critical.max_new_tokens=1 must be a whole number of at "
         "least 2"),
        ("model.init_from=null", "self-critical training (stage=scst) goes on from a trained model; say which with "
         "model.init_from=RUN_DIR, a run of train.py with another stage"),
        ("model.init_from='???'", "model.init_from is missing; say which, for example model.init_from=runs/MY_RUN"),
        ("scores.pictures=0", "stage.best_by=val/cider needs captions to score; set scores.pictures above 0"),
        ("scores.every_n_epochs=11", "stage.best_by=val/cider is never measured, with scores.every_n_epochs=11 and "
         "trainer.max_epochs=10; lower the first"),
    ],
)  # fmt: skip
def test_so_are_values_of_self_critical_training(change, said):
    assert sentence("train", SCST, change) == said


def test_adapters_need_what_is_pretrained_and_a_stage_that_trains_it():
    assert sentence("train", ["model=tiny"], "model.lora.rank=8") == (
        "model.lora.rank=8 adapts pretrained weights, and model=tiny begins with random ones; say which with "
        "model.init_from=RUN_DIR, or leave model.lora out"
    )
    assert sentence("train", ["stage=decoder"], "model.lora.rank=8") == (
        "model.lora.targets has encoder, which this stage never trains; choose stage=full, or leave encoder out"
    )
    assert sentence("train", [], "model.lora.targets=[head]").endswith("must be [decoder], [encoder] or both")
    accepted("train", ["stage=decoder"], "model.lora.rank=8", "model.lora.targets=[decoder]")
    accepted("train", ["model=tiny", *DRAWN], "model.lora.rank=8", "model.init_from=runs/mine")


def test_a_cache_of_encodings_needs_the_same_encoder_and_the_same_pictures():
    assert sentence("train", ["stage=full"], "encoder_cache=auto") == (
        "encoder_cache=auto needs an encoder that stays as it is, and this stage trains it from epoch 2; choose "
        "stage=cross_attention or stage=decoder, or leave encoder_cache=null"
    )
    assert sentence("train", ["stage=decoder"], "encoder_cache=auto", f"{AUGMENTATION}.brightness=0") == (
        "encoder_cache=auto needs pictures that are the same in every epoch; switch their augmentation off with "
        f"{AUGMENTATION}.crop_scale=null {AUGMENTATION}.contrast=0 {AUGMENTATION}.flip=false, or leave "
        "encoder_cache=null"
    )
    accepted("train", ["stage=decoder", *DRAWN], "encoder_cache=auto")
    accepted("train", ["stage=decoder"], "encoder_cache=auto", "data.overfit_images=8")
    own = "data._target_=mine.Data"
    assert "augmentation off with" in sentence("train", ["stage=decoder", own], "encoder_cache=auto")


def test_keys_that_a_data_set_of_ones_own_shares_with_ours_are_checked_as_theirs():
    own = "data={_target_: mine.Data, root: 3, batch_size: many}"
    assert sentence("train", [], own) == "data.batch_size=many must be auto, or a whole number of at least 1"


@pytest.mark.parametrize(
    ("decoding", "change", "said"),
    [
        ("greedy", "max_new_tokens=0", "max_new_tokens=0 must be a whole number of at least 1"),
        ("sampling", "temperature=0", "temperature=0 must be above 0; for the most probable word each time, use "
         "decoding=greedy"),
        ("sampling", "temperature=.inf", "temperature=.inf must be above 0; for the most probable word each time, use "
         "decoding=greedy"),
        ("sampling", "top_k=0", "top_k=0 must be a whole number of at least 1, or null"),
        ("sampling", "top_p=1.5", "top_p=1.5 must be above 0 and at most 1; 1 keeps every token"),
        ("sampling", "top_p=true", "top_p=true must be above 0 and at most 1; 1 keeps every token"),
        ("sampling", "seed=-1", "seed=-1 must be a whole number from 0 to 4294967295"),
        ("greedy", "repetition_penalty=0", "repetition_penalty=0 must be a number from 0.1 to 10; 1 leaves tokens as "
         "they are"),
        ("beam", "banned_words=cat", "banned_words=cat must be a list of words such as [cat,dog], no blank at "
         "their ends"),
        ("greedy", "eos_token_ids=[-1]", "eos_token_ids=[-1] must be a list of token ids"),
        ("greedy", "prefix=' a'", "prefix= a must be a text with no blank at its ends"),
        ("sampling", "min_p=2", "min_p=2 must be a number from 0 to 1"),
        ("beam", "num_beams=0", "num_beams=0 must be a whole number of at least 1"),
        ("beam", "length_penalty=11", "length_penalty=11 must be a number from -10 to 10; 1 compares the means of "
         "tokens"),
        ("beam", "length_penalty=nan", "length_penalty=nan must be a number from -10 to 10; 1 compares the means of "
         "tokens"),
        ("beam", "early_stopping=1", "early_stopping=1 is none of true, false, never"),
        ("beam", "early_stopping=maybe", "early_stopping=maybe is none of true, false, never"),
        ("beam", "no_repeat_ngram_size=-1", "no_repeat_ngram_size=-1 must be a whole number of at least 0"),
        ("beam", "min_new_tokens=41", "min_new_tokens=41 must be at most decoding.max_new_tokens=40"),
        ("beam", "n_best=6", "n_best=6 must be at most decoding.num_beams=5; for more captions, search with "
         "decoding.num_beams=6"),
    ],
)  # fmt: skip
def test_so_are_values_of_decodings(decoding, change, said):
    assert sentence("predict", [f"decoding={decoding}"], f"decoding.{change}") == f"decoding.{said}"


def test_several_draws_of_one_token_are_refused():
    given = ["decoding=sampling"], "decoding.n_best=3", "decoding.top_k=1"
    assert sentence("predict", *given) == (
        "decoding.n_best=3 with decoding.top_k=1 would draw one caption 3 times; choose among more tokens"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("checkpoint=null", "checkpoint is missing; say which, for example checkpoint=runs/MY_RUN"),
        ("checkpoint=[a,b]", "checkpoint=[a,b] must be one path, for example checkpoint=runs/MY_RUN"),
        ("output=null", "output is missing; say which, for example output=captions.jsonl"),
        ("output={a: b}", "output={a: b} must be one path, for example output=captions.jsonl"),
        ("input=null", "input is missing; say which, for example input=my_photos, or data=coco split=val"),
        ("input='a/${b}.jpg'", "input cannot be read: Interpolation key 'b' not found; ${ begins a reference to "
         "another key"),
        ("batch_size=0", "batch_size=0 must be auto, or a whole number of at least 1"),
        ("device=gpu", "device=gpu must be auto, cpu, cuda, cuda:1, mps or another accelerator's name in torch"),
        ("num_workers=-1", "num_workers=-1 must be auto, or a whole number of at least 0"),
        ("trainer.devices=0", "trainer.devices=0 must be auto, or a whole number of at least 1"),
        ("precision=64", "precision=64 is none of auto, 32, bf16, 16, int8"),
        ("resume=x", "resume=x must be true or false; true goes on where output=... was stopped"),
        ("overwrite=x", "overwrite=x must be true or false"),
        ("text_files.write=yes", "text_files.write=yes is none of true, false, missing"),
        ("gallery=3", "gallery=3 must be true, false or a path such as captions.html"),
        ("gallery=[a]", "gallery=[a] must be true, false or a path such as captions.html"),
        *(
            (f"heat_maps={value}", f"heat_maps={value} must be a number of pictures, or names of some such as "
             "[a.jpg,b.jpg]")
            for value in ("true", "-1", "1.5", "null")
        ),
        ("heat_maps_layers=last", "heat_maps_layers=last must be a layer such as 2, a list of some, or null"),
    ],
)  # fmt: skip
def test_so_are_values_of_prediction(change, said):
    assert sentence("predict", [], change) == said


def test_what_is_captioned_is_either_a_data_set_or_named_by_input():
    assert sentence("predict", ["data=coco"]) == "input=photos and data=coco are both given; leave one out"
    assert sentence("predict", ["data=shapes"]) == "input=photos and data=shapes are both given; leave one out"
    of_coco = "split=vla is none of train, val, test, the splits of coco"
    assert sentence("predict", ["data=coco"], "input=null", "split=vla") == of_coco
    accepted("predict", [], "input=null", "split=dev", "data={_target_: mine.Data}")
    assert sentence("predict", ["data=coco"], "input=null", "text_files.write=true") == (
        "text_files=true writes beside the pictures of input=..., not into a data set; leave it out"
    )


def test_so_are_values_of_preparation():
    way_out = "data.prepared=null trains on the files as they are"
    for size in (8, 5000):
        said = f"size={size} must be a whole number from 32 to 4096; {way_out}"
        assert sentence("prepare", [], f"size={size}") == said
    assert sentence("prepare", [], "num_workers=-1") == "num_workers=-1 must be a whole number of at least 0, or null"
    assert sentence("prepare", ["data=shapes"], "data.image_size=8") == (
        "data=shapes draws its pictures; prepare.py is for photographs, such as data=coco"
    )


def accepted(name, chosen, *changes):
    return checked(changed(name, chosen, changes), KINDS[name])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("train", ["trainer.precision=32", "trainer.devices=auto", "trainer.fast_dev_run=true"]),
        ("train", ["trainer.limit_train_batches=0.5", "trainer.limit_val_batches=3", "trainer.devices=[0,1]"]),
        ("train", ["optimizer.betas=[0,0.95]", f"{AUGMENTATION}.crop_scale=[0.5,1]", "data.fraction=1"]),
        ("train", ["stage.learning_rates={cross_attention: 1, decoder: 1e-4, encoder: 1}", "run_dir=2024"]),
        ("train", ["data={_target_: mine.Data, root: 3, batch_sizes: many}", "model={_target_: mine.model, width: a}"]),
        ("train", ["logger={mine: {_target_: mine.Logger, folder: a}}", "decoding={_target_: mine.Words, n: 3}"]),
        ("predict", ["precision=16", "gallery=true", "heat_maps=[a.jpg,7]", "heat_maps_layers=[0,1]"]),
        ("predict", ["precision=bf16", "gallery=page.html", "heat_maps=a.jpg", "num_workers=3", "input=[a,b]"]),
        ("predict", ["output=2024", "input=7"]),
    ],
)
def test_what_can_be_meant_passes(name, changes):
    accepted(name, [], *changes)


def test_the_object_holds_what_was_composed_and_cannot_be_written_to():
    config = composed("train", "experiment=demo", "debug=profile")
    made = checked(config, KINDS["train"], run_dir="elsewhere")
    plain = OmegaConf.to_container(OmegaConf.merge(config, {"run_dir": "elsewhere"}), resolve=True)
    betas = plain["optimizer"].pop("betas")
    found = made.plain()
    assert list(found["optimizer"].pop("betas")) == betas and found == plain
    assert found["logger"]["wandb"]["run_dir"] == "elsewhere" and config.run_dir != "elsewhere"
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 3


def choices(group):
    files = sorted((CONF / group).glob("*.yaml"))
    return [f"{group}={file.stem}" for file in files if not file.stem.startswith("_")]


GROUPS = ("data", "model", "stage", "optimizer", "decoding", "trainer", "logger", "callbacks")
OF_GROUPS = [choices(group) for group in GROUPS]
EVERY = {  # so that each choice of each group is in one of these
    "train": [
        *([of[i % len(of)] for of in OF_GROUPS] + SCST[1:] for i in range(max(map(len, OF_GROUPS)))),
        *([*SCST, choice] if "demo" not in choice else [choice] for choice in choices("debug")),
        *([choice, "model.init_from=runs/mine"] for choice in choices("experiment")),
        *(["data=shapes", "model=tiny", choice] for choice in choices("debug")),
    ],
    "predict": [[choice] for group in ("data", "decoding", "logger", "engine") for choice in choices(group)],
    "prepare": [[choice] for choice in choices("data")],
    "export": [[choice] for choice in choices("data")],
}


def names_in(values, prefix=""):
    """The dotted names of a composed configuration's values; those of loggers under `*`."""
    for name, value in values.items():
        full = f"{prefix}{name}"
        yield full
        if isinstance(value, dict):
            yield from names_in(value, f"{full}.")


@pytest.mark.parametrize("name", KINDS)
def test_every_choice_composes_every_key_is_known_and_every_known_key_is_in_conf(name):
    known = dict(fields_of(KINDS[name]))
    silent = [key for key, field in known.items() if not field.description]
    assert not silent, "each says what it is"
    met = set()
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} == {*GROUPS, "debug", "experiment", "engine"}
    for chosen in EVERY[name]:
        config = composed(name, *chosen)
        if name == "train":
            checked(config, KINDS[name])
        values = OmegaConf.to_container(config)
        ours = (key for key in names_in(values) if not key.startswith(("logger.tensorboard", "logger.mlflow")))
        met |= {re.sub("(logger|callbacks)[.][a-z_]+", r"\1.*", key) for key in ours}
    of_others = ("trainer.profiler.", "callbacks.*.")
    met = {key for key in met if not key.startswith(of_others)} - {"logger.*", "callbacks.*"}
    assert met <= known.keys()
    lists = {key for key in known if re.search("(phases|callbacks|plugins)[.][*][.]", key)}
    assert known.keys() - met <= lists


def test_every_argument_of_lightnings_trainer_is_in_conf_or_refused_by_name():
    arguments = {name: one.default for name, one in inspect.signature(Trainer.__init__).parameters.items()}
    listed = {key: value for key, value in composed("train").trainer.items() if key != "_target_"}
    assert arguments.keys() - {"self"} == listed.keys() | INSTEAD.keys()
    assert all(arguments[key] is None for key, value in listed.items() if value is None)  # as Lightning's own default


def runs_of_words(text, length=4):
    words = re.findall(r"[a-z0-9_]+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_a_comment_of_conf_says_no_sentence_of_config_again():
    said = {}
    for name, field in (pair for kind in KINDS.values() for pair in fields_of(kind)):
        said.setdefault(name.rpartition(".")[2], set()).update(runs_of_words(field.description))
    twice = []
    for file in sorted(CONF.rglob("*.yaml")):
        for name, comment in re.findall(r"^ *(\w+):.*? # (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            twice += [f"{file.name}: {name}: {comment}"] if runs_of_words(comment) & said.get(name, set()) else []
    assert not twice


def test_a_model_from_scratch_brings_what_it_needs_and_what_a_user_says_wins():
    every, high = ["cross_attention", "decoder", "encoder"], {"cross_attention": 4e-3, "decoder": 4e-3, "encoder": 4e-3}
    tiny = composed("train", "data=flickr8k", "model=tiny", "stage=full")
    assert tiny.stage.phases == [{"from_epoch": 0, "train": every}] and tiny.stage.learning_rates == high
    assert composed("train", "model=tiny", "stage=decoder").stage.phases == [{"from_epoch": 0, "train": every[:2]}]
    assert tiny.data.tokenizer is None and tiny.data.batch_size == 4

    said = composed(
        *("train", "model=tiny", "stage.learning_rates.decoder=1e-4", f"stage.phases={PHASES}]"),
        *("data.tokenizer=gpt2", "data.batch_size=16"),
    )
    assert said.stage.learning_rates == high | {"decoder": 1e-4}
    assert len(said.stage.phases) == 1 and said.stage.phases[0].train == every[:1]
    assert (said.data.tokenizer, said.data.batch_size) == ("gpt2", 16)

    trained = composed("train", "model=tiny", "stage=scst", "model.init_from=runs/mine")
    assert trained.stage == composed("train", "stage=scst", "model.init_from=runs/mine").stage
    assert composed("train", "experiment=demo").stage.learning_rates.encoder == 2.5e-3
    assert len(composed("train", "stage=full").stage.phases) == 3


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ((), "adamw"),
        (("model=tiny",), "muon"),
        (("model=tiny", "optimizer=adamw"), "adamw"),
        (("optimizer=muon",), "muon"),
    ],
)
def test_a_model_from_scratch_has_the_optimizer_that_serves_it_best(chosen, name):
    assert composed("train", *chosen).optimizer._target_ == f"captioning.training.optimizers.{name}"
