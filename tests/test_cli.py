"""The command line before Hydra sees it, building from configuration, and what a person sees of a mistake."""

import logging
import re
from dataclasses import dataclass

import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from small_runs import composition
from torch._utils import ExceptionWrapper

from captioning.cli import (
    built,
    check_overrides,
    configured,
    in_full,
    in_hydras_words,
    one_sentence_errors,
    prepared_arguments,
    quiet_libraries,
    quoted,
)
from captioning.config import TrainConfig
from captioning.errors import Stopped, UserError
from captioning.runs import disown

CONF = ROOT / "conf"


# What predict.py cannot do without.
GIVEN = ["checkpoint=runs/mine", "input=photos"]


def check(*overrides, config="train"):
    check_overrides(list(overrides), config, multirun=True)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data=cocoo", "did you mean coco"),
        ("trainer.max_epoch=3", r"; conf/ lists them all; did you mean trainer.max_epochs\?$"),
        ("image_size=3", r"did you mean model.image_size\?$"),
        ("model=vit", r"did you mean vit_gpt2\?$"),
        ("trainer.overfit_batches=1", "trainer.overfit_batches=1 is not taken: .*; data.overfit_images=8"),
        ("trainer.max_epochs=many", "trainer.max_epochs=many must be a whole number"),
        ("data.use_restval=3", "must be true or false"),
        ("experiment=dmeo", "did you mean demo"),
        ("data._common=3", "no key data._common"),
        ("nonsense", "not an override"),
        ("data.root=[", "not an override"),
        ("~trainer.nothing", "~trainer.nothing does not compose"),
        ("hydra.nothing=3", "hydra.nothing=3 does not compose"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(override, named):
    with pytest.raises(UserError, match=named) as raised:
        check(override)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("script", "typed", "meant"),
    [
        ("train", "epochs=3 batch_size=8", "trainer.max_epochs=3 data.batch_size=8"),
        ("train", "--data flickr8k --fraction=0.5 --stage.epochs 2 -m", "data=flickr8k data.fraction=0.5 "
         "trainer.max_epochs=2 -m"),
        ("train", "+trainer.max_steps=3 ++trainer.fast_dev_run=1", "++trainer.max_steps=3 ++trainer.fast_dev_run=1"),
        ("predict", "--checkpoint X --images Y --overwrite", "checkpoint=X input=Y overwrite=true"),
        ("predict", "model=X folder=Y num_beams=3 --cfg job", "checkpoint=X input=Y decoding.num_beams=3 --cfg job"),
        ("predict", "--gallery image=Y batch_size=3", "gallery=true input=Y batch_size=3"),
    ],
)  # fmt: skip
def test_a_name_that_means_one_key_is_that_key(script, typed, meant):
    assert in_full(list(in_hydras_words(typed.split())), script) == meant.split()


def test_two_names_of_one_key_do_not_contradict():
    assert in_full(["epochs=3", "trainer.max_epochs=3"], "train") == ["trainer.max_epochs=3"] * 2
    with pytest.raises(UserError, match=r"epochs=3 and trainer.max_epochs=4 are both trainer.max_epochs"):
        in_full(["epochs=3", "trainer.max_epochs=4"], "train")


def test_keys_of_prediction_take_numbers_words_or_lists():
    for argument, value in {
        "gallery=true": True,
        "gallery=my page (1), best.html": "my page (1), best.html",
        "heat_maps=8": 8,
        "heat_maps=a dog, a cat.jpg": "a dog, a cat.jpg",
        "heat_maps=[a.jpg,7]": ["a.jpg", 7],
        "heat_maps_layers=[0,1]": [0, 1],
    }.items():
        *_, given = prepared_arguments([*GIVEN, argument], "predict")
        assert composition("predict", given)[argument.partition("=")[0]] == value


@pytest.mark.parametrize(
    "override",
    [
        "data=flickr8k",
        "trainer.max_epochs=3",
        "trainer.precision=16-mixed",
        "trainer.precision=32",
        "trainer.devices=auto",
        "trainer.limit_train_batches=0.5",
        "data.augmentation.crop_scale=null",
        "data.augmentation.crop_scale=[0.5,1]",
        "stage.learning_rates={decoder: 1e-4}",
        "optimizer.betas=[0.9,0.95]",
        "~logger",
        "data.fraction=0.3",
        "seed=1,2,3",
        "data=coco,shapes",
        "hydra.verbose=true",
    ],
)
def test_what_can_be_meant_passes(override):
    check(override)


@pytest.mark.parametrize(
    "path",
    ["photos", "/a/b/c.ckpt", "my photos", "a,b", "it's", "x (2)", "[brackets]"[1:], "a=b", "ü/ñ", "50%", "a{b}"],
)
def test_a_path_reaches_the_configuration_as_it_was_typed(path):
    assert composition("predict", quoted(f"input={path}")).input == path


def test_a_value_that_cannot_be_meant_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match=r"data\.batch_size=abc must be auto, or a whole number of at least 1"):
        prepared_arguments(["data=shapes", "data.batch_size=abc", f"run_dir={tmp_path / 'run'}"], "train")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_in_use_is_not_written_into(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match=f"resume={tmp_path}"):
        prepared_arguments([f"run_dir={tmp_path}"], "train")


@pytest.mark.parametrize("text", ["", "{a: [", "a: 3"])
def test_damaged_overrides_of_a_run_are_told(tmp_path, text):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(text)
    with pytest.raises(UserError, match=r"overrides\.yaml is damaged; write"):
        prepared_arguments([f"resume={tmp_path}"], "train")


def test_a_resumed_run_keeps_its_overrides_and_takes_new_ones(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n- run_dir=/elsewhere\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    arguments = prepared_arguments([f"resume={tmp_path}", "trainer.max_epochs=8"], "train")
    assert arguments == [
        "data=shapes",
        "model=tiny",
        f"resume={tmp_path}",
        "trainer.max_epochs=8",
        f"run_dir={tmp_path}",
    ]


def test_a_resumed_run_takes_no_other_weights(tmp_path):
    with pytest.raises(
        UserError, match=rf"resume={tmp_path} continues with its own weights; leave model\.init_from out"
    ):
        prepared_arguments([f"resume={tmp_path}", "model.init_from=x"], "train")


def test_what_comes_with_the_weights_to_start_from_is_refused_beside_them():
    with pytest.raises(UserError, match=r"model\.encoder comes from model\.init_from=a/b; leave one of the two out"):
        check_overrides(["model.init_from=a/b", "model.encoder=c/d"], "train")
    check_overrides(["model.init_from=a/b", "model.image_size=384", "model.dropout=0.2"], "train")


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        prepared_arguments([f"resume={tmp_path}"], "train")


def test_a_scalar_where_a_section_belongs_is_the_evident_thing_or_refused(tmp_path):
    said = ["scores=0", "sample_pictures=false", "checkpoints=false", "data.augmentation=false", "logger=null"]
    config = configured(TrainConfig, *said)
    assert (config.scores.pictures, config.sample_pictures) == (0, 0)
    assert (config.trainer.enable_checkpointing, config.data.augmentation.switched_on, config.logger) == (False, [], {})
    prepared = prepared_arguments([*said, "data=shapes", "model=tiny", f"run_dir={tmp_path}"], "train")
    assert "scores.pictures=0" in prepared and "~logger" in prepared
    for given, refused in {
        "stage.learning_rates=1e-4": "must be a section of keys: cross_attention, decoder, encoder",
        "scores=5": "scores=5 must be a section of keys: pictures, every_n_epochs",
        "decoding=null": "decoding=null chooses nothing; choose one of beam, greedy, sampling",
    }.items():
        with pytest.raises(UserError, match=refused):
            configured(TrainConfig, given) if "decoding" not in given else check(given)


def test_what_was_left_out_of_a_run_can_come_back_as_it_resumes(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n- ~logger\n")
    assert "~logger" not in prepared_arguments([f"resume={tmp_path}", "logger=csv"], "train")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hydra.run.dir=${nowhere}", r"hydra\.run\.dir=\$\{nowhere\} cannot be read: .*'nowhere' not found; name a"),
        (
            "hydra.job.chdir=true",
            r"hydra\.job\.chdir=true would let relative paths begin in the run's folder",
        ),
        ("--config-dir=nowhere", r"--config-dir=/.*nowhere is no folder; name the one that holds experiment/"),
        ("--config-name=mine", r"--config-name=mine is not taken: each script has one configuration; put yours into F"),
        (
            "lr=1e-4",
            "there is no key lr; each group of weights has a rate of its own: .*decoder=1e-4",
        ),
        ("optimizer.lr=1e-4", r"there is no key optimizer\.lr; each group of weights has a rate of its own"),
    ],
)
def test_what_hydra_would_end_in_a_trace_or_far_away_is_a_sentence(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        prepared_arguments(["data=shapes", "model=tiny", given], "train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("decoding.temperature=0.7", r"it is of decoding=sampling$"),
        ("decoding.num_beams=3", r"it is of decoding=beam$"),
        ("decodng=greedy", r"did you mean decoding\?"),
        ("batch_size=1,2", r"add -m to run them all"),
        ("~decoding", r"choose one with decoding="),
    ],
)
def test_the_way_out_is_named(argument, said):
    with pytest.raises(UserError, match=said):
        prepared_arguments([*GIVEN, argument], "predict")


def test_hydras_own_groups_can_be_overridden(tmp_path):
    given = ["experiment=demo", "hydra/job_logging=disabled", f"run_dir={tmp_path}"]
    assert prepared_arguments(given, "train") == given


def test_a_multiruns_sweep_over_paths_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["-m", "experiment=demo", "data.tokenizer=a,b", "hydra.sweep.dir=x"]
    assert prepared_arguments(given, "train") == given
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir=x"):
        prepared_arguments(["-m", "experiment=demo", "run_dir=x"], "train")


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quoted("data.root=~/coco") == f"data.root={tmp_path}/coco"


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_resumed_from_its_overrides(tmp_path, caplog):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n")
    assert "data=shapes" in prepared_arguments([f"resume={tmp_path}"], "train")


def test_a_job_that_slurm_has_requeued_goes_on_with_the_same_command(tmp_path, monkeypatch):
    command = ["data=shapes", "model=tiny", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert prepared_arguments(command, "train") == command, "there was nothing yet"
    (tmp_path / "run" / ".hydra").mkdir()
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n- seed=3\n")
    (tmp_path / "run" / "metrics.csv").touch()
    assert prepared_arguments(command, "train")[:4] == [
        *("data=shapes", "model=tiny", "seed=3"),
        f"resume={tmp_path / 'run'}",
    ]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(UserError, match="begin it anew with resume="):
        prepared_arguments(command, "train")


def test_the_other_ranks_of_a_resumed_run_get_the_arguments_of_the_first(tmp_path, monkeypatch):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n")
    prepared = prepared_arguments([f"resume={tmp_path}"], "train")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert prepared_arguments(prepared, "train") == prepared


@pytest.mark.parametrize("started", [{"SLURM_STEP_NUM_TASKS": "4"}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}])
def test_processes_that_are_started_together_need_one_folder(monkeypatch, tmp_path, started):
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="4 processes are started with this command; name their one run folder with"):
        prepared_arguments(["trainer=slurm", "data=shapes"], "train")
    given = [f"run_dir={tmp_path / 'run'}", "trainer=slurm", "data=shapes", "model=tiny"]
    assert prepared_arguments(given, "train") == given


def test_resume_is_a_folder_of_training_and_a_switch_of_prediction():
    assert quoted("resume=true") == "resume=true"
    given = ["resume=true", "checkpoint=runs/mine", "input=photos"]
    assert prepared_arguments(given, "predict") == given
    with pytest.raises(UserError, match="resume=True is not a run folder"):
        prepared_arguments(["resume=true"], "train")


@dataclass
class Thing:
    """What the tests build."""

    size: int
    names: list

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UserError(f"thing.size={self.size} must be above 0")
        if self.size == 0:
            raise ValueError("nothing\nfits into 0")
        if self.size > 100:
            raise ZeroDivisionError("our own bug")


def thing(**values):
    return OmegaConf.create({"_target_": f"{__name__}.Thing", "size": 3, "names": ["a"], **values})


@pytest.fixture(autouse=True)
def no_trace_asked_for(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def test_a_users_mistake_ends_in_one_sentence_and_status_1():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise UserError("size=0 must be above 0")
    assert end.value.code == "error: size=0 must be above 0", "which Python prints, and ends with status 1"


def test_the_trace_is_there_for_the_asking(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="size=0"), one_sentence_errors():
        raise UserError("size=0 must be above 0")


def test_a_bug_keeps_its_trace():
    with pytest.raises(ZeroDivisionError), one_sentence_errors():
        raise ZeroDivisionError


def test_of_other_errors_of_torch_the_trace_stays():
    with pytest.raises(RuntimeError, match="sizes do not match"), one_sentence_errors():
        raise RuntimeError("sizes do not match")


def test_an_interruption_is_no_error():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise KeyboardInterrupt
    assert end.value.code == "interrupted"


def test_a_stopped_command_says_how_to_go_on_and_has_the_signals_status(capsys):
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise Stopped(130, "SIGINT; continue with python train.py resume=runs/a")
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT; continue with python train.py resume=runs/a\n"


def test_the_sentence_of_a_loader_worker_comes_without_its_trace():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        try:
            try:
                raise OSError("cannot read")
            except OSError as error:
                raise UserError("a.jpg cannot be read; data.on_missing=skip leaves such files out") from error
        except UserError:
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # what torch's workers send home
        assert "Traceback" in sent.exc_msg
        sent.reraise()
    assert end.value.code == "error: a.jpg cannot be read; data.on_missing=skip leaves such files out"


def test_what_is_built_gets_plain_containers():
    made = built(thing(), "thing")
    assert (made.size, made.names) == (3, ["a"]) and type(made.names) is list
    assert built(thing(), "thing", size=5).size == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": -1}, r"^thing\.size=-1 must be above 0$"),
        ({"size": 0}, r"^group cannot be set up so: nothing fits into 0$"),
        ({"colour": "red"}, r"^group cannot be set up so: .*unexpected keyword argument 'colour'"),
        ({"size": "${nowhere}"}, r"^the configuration of group is incomplete: .*nowhere"),
        ({"size": "???"}, r"^the configuration of group is incomplete: .*size"),
    ],
)
def test_what_a_constructor_objects_to_names_the_key(values, said):
    with pytest.raises(UserError, match=said) as raised:
        built(thing(**values), "group")
    assert "\n" not in str(raised.value)


def test_a_bug_in_a_constructor_stays_a_bug():
    with pytest.raises(Exception, match="our own bug") as raised:
        built(thing(size=101), "group")
    assert not isinstance(raised.value, UserError)


def test_transformers_advice_about_padding_that_nobody_can_heed_stays_out_of_the_terminal(caplog):
    quiet_libraries()
    logger = logging.getLogger("transformers.modeling_utils")
    logger.warning("We strongly recommend passing in an `attention_mask` since your input_ids may be padded.")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_a_path_where_a_choice_belongs_is_given_its_key(tmp_path):
    for group, key in (("data", "data=folder data.root"), ("model", "model.init_from")):
        with pytest.raises(UserError, match=re.escape(f"did you mean {key}={tmp_path}?")):
            check_overrides([f"{group}={tmp_path}"], "train")


def test_a_folder_of_ones_own_choices_is_asked_for_them_and_kept_with_the_run(tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("defaults: [tiny]\nencoder_layers: 7\n")
    monkeypatch.chdir(tmp_path)
    given = ["--config-dir", "conf", "data=shapes", "model=mine", "--seed=3", "--stage.warmup_steps=10", "run_dir=a"]
    prepared = prepared_arguments(given, "train")
    assert prepared[:5] == [
        f"hydra.searchpath=['file://{tmp_path}/conf']",
        *given[2:4],
        "seed=3",
        "stage.warmup_steps=10",
    ]
    disown(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"model=nothing.* does not compose: .*Available options in 'model': .*mine .*tiny"
    ):
        prepared_arguments(["--config-dir=conf", "data=shapes", "model=nothing"], "train")


def test_a_sweep_may_name_its_choices_by_a_pattern(tmp_path):
    given = ["-m", "stage=glob(*,exclude=scst)", "data=shapes", "model=tiny", f"hydra.sweep.dir={tmp_path}"]
    assert prepared_arguments(given, "train") == given
    with pytest.raises(UserError, match=r"add -m to run them all"):
        prepared_arguments(given[1:], "train")
    with pytest.raises(UserError, match=r"experiment=glob\(nothing\*\) fits none of the choices; write another"):
        prepared_arguments(["-m", "experiment=glob(nothing*)"], "train")
