"""The configuration: every key of `conf/` once, with its type, its range and a sentence that says what it is.

`checked(cfg, TrainConfig)` turns what Hydra composed into a frozen object, or ends in one sentence on the first value
that cannot be meant: `data.max_tokens=abc must be a whole number of at least 2`. Defaults stand in `conf/` alone. What
depends on the machine, on a model's weights or on files is checked where those are known.

A new key is one line in its section here and one in its file of `conf/`.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from captioning.errors import UserError
from captioning.metrics import choosable

SPLITS = ("train", "val", "test")  # of a data set of ours
GROUPS = ("cross_attention", "decoder", "encoder")  # of a model's weights, which a stage trains or leaves

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]  # a probability, or a change relative to 1
Limit = Annotated[int, Ge(0)] | Annotated[float, Ge(0), Le(1)]  # so many, or a part of all
Part = Annotated[float, Gt(0), Le(1)]
Word = Annotated[str, MinLen(1)]
Auto = Literal["auto"]  # as this machine has it: `machine.py`
Text = Annotated[Word, BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v)]  # a folder named 2024
Texts = Annotated[list[Text], MinLen(1)]
Trimmed = Annotated[Text, Field(pattern=r"^\S(.*\S)?$")]


def key(
    says: str, *, must: str = "", way_out: str = "", example: str = "", path: bool = False, default: Any = ...
) -> Any:
    """A key: what it is, and what a sentence about a wrong value adds.

    Args:
        says: one short sentence.
        must: what a value must be, where its type and range don't say it well enough.
        way_out: what to do instead, after a semicolon.
        example: a value, where there is no default.
        path: whether it may be a path, or a name with blanks and accents, which the command line quotes for Hydra.
        default: for arguments of other libraries alone, whose defaults are not repeated in `conf/`.
    """
    extra: dict[str, Any] = {"must": must, "way_out": way_out, "example": example, "path": path}
    return Field(default, description=says, json_schema_extra=extra)


OF_A_SECTION = ("in words", "value_error", "missing", "extra_forbidden")  # errors that a section of keys has raised


def in_words(objection: str) -> PydanticCustomError:
    """An error that is said so, behind the key's name, which is `{name}` in it."""
    return PydanticCustomError("in words", "{objection}", {"objection": objection})


class Section(BaseModel):
    """Some keys that belong together, frozen; a key that it doesn't know is refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        defer_build=True,  # at the first use, of one kind alone: a quarter second
        allow_inf_nan=False,
        populate_by_name=True,
    )

    def plain(self) -> dict[str, Any]:
        """As plain containers, with the keys as they are in `conf/`."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _in_words(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Say of a wrong value what it must be, unless it is a section with words of its own."""
        field = cls.model_fields[str(info.field_name)]
        try:
            return validate(value)
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] in OF_A_SECTION and _sections(field.annotation):
                raise
            raise in_words(_objection(field, value)) from None


class Built(Section):
    """A section that says by `_target_` what is built of it: that is called with the other keys as arguments."""

    target: str = Field(alias="_target_", description="The Python name of what is built of the other keys.")


class Own(Built):
    """What a user's own `_target_` gets, whatever that is."""

    model_config = ConfigDict(extra="allow")


def by_target(kinds: dict[str, type[Built]], own: type[Own] = Own) -> PlainValidator:
    """Makes the section of the kind that `_target_` names, the user's own for any other."""

    def made(value: Any) -> Section:
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise in_words(f"={shown(value)} must be a section of keys")
        return kinds.get(value.get("_target_", ""), own).model_validate(value)

    return PlainValidator(made)


# ---------------------------------------------------------------------------------------------------------------- data


AUGMENTATION_OFF = {"crop_scale": "null", "brightness": "0", "contrast": "0", "flip": "false"}


class AugmentationConfig(Section):
    """How training pictures are varied; none of it makes a caption false."""

    crop_scale: Annotated[tuple[Part, Part], Strict(False)] | None = key(
        "Part of the picture's area that a random crop keeps, from and to.",
        must="null or two parts of the area in rising order, above 0 and at most 1, for example [0.7,1.0]",
    )
    brightness: Share = key("Relative change of brightness at most.", must="a number from 0 (off) to below 1")
    contrast: Share = key("Relative change of contrast at most.", must="a number from 0 (off) to below 1")
    flip: bool = key("Whether pictures are mirrored of whose captions none says left or right.")

    @model_validator(mode="after")
    def _rises(self) -> AugmentationConfig:
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise UserError(
                f"data.augmentation.crop_scale={shown(self.crop_scale)} must be "
                f"{_extra(type(self).model_fields['crop_scale'], 'must')}"
            )
        return self

    @property
    def switched_on(self) -> list[str]:
        """The overrides that would switch off what is on."""
        return [f"data.augmentation.{name}={off}" for name, off in AUGMENTATION_OFF.items() if getattr(self, name)]


class DataConfig(Built):
    """What every data set of ours has."""

    tokenizer: Text | None = key(
        "The decoder's tokenizer: hub name or folder; null trains a small one on the captions.", path=True
    )
    batch_size: Auto | Count = key("Rows of a step and process: pictures, each with its captions.")
    captions_per_image: Count = key("Captions that share one encoded picture.")
    max_tokens: Annotated[int, Ge(2)] = key("Tokens of a caption, EOS included; longer ones are cut.")
    num_workers: Auto | Whole = key("Processes that load pictures.")
    augmentation: AugmentationConfig = key("How training pictures are varied.")
    overfit_images: Count | None = key("Train and validate on the first so many photographs, one caption each.")
    seed: Seed = key("Of order, augmentation and choice of captions, and of splits where no list divides them.")


def _encoding(name: str) -> str:
    """The same; raises ValueError where Python has no encoding of text by that name."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(str(error)) from error
    return name


class StoredConfig(DataConfig):
    """Photographs that are stored somewhere."""

    fraction: Part = key("Part of the training photographs.")
    on_missing: Literal["error", "skip"] = key("What to do where a picture is missing or cannot be read.")
    prepared: Text | None = key(
        "Folder of pictures that prepare.py stored small; auto is ROOT/prepared, null reads none.",
        path=True,
    )


class PhotographsConfig(StoredConfig):
    """Photographs in files, with captions in annotation files: COCO, Flickr30k, Flickr8k."""

    dataset: Text = key("Which data set it is.")
    root: Text = key("The folder with pictures and captions.", must="a folder", way_out="set data.root=PATH", path=True)
    layout: Text = key("Which annotation files to read, where several lie under root.")
    use_restval: bool = key("Whether Karpathy's restval photographs join train.")


class FolderConfig(PhotographsConfig):
    """Pictures and captions of one's own."""

    captions: Text | list[Text] | None = key(
        "The file of captions, or one for each split; null looks under root.",
        must="null, one path, or a list such as [train.csv,val.csv]",
        path=True,
    )
    image_column: Text | None = key("The column of pictures; null takes one with a usual name.", path=True)
    caption_column: Text | list[Text] | None = key(
        "The column of captions, or several; null takes the usual.", path=True
    )
    split_column: Text | None = key("The column of splits; null takes one with a usual name.", path=True)
    split_by: Literal["auto", "column", "folder", "lists", "seed"] = key(
        "What says which split a picture is in; auto is the first of these that is there."
    )
    caption_suffix: Auto | Annotated[str, Field(pattern=r"^\.[\w-]+$")] = key(
        "Of captions beside pictures; auto is .caption or .txt.", must="auto, or a suffix such as .txt"
    )
    captions_per_file: Literal["one", "lines"] = key("Whether each line of a file beside a picture is a caption.")
    encoding: Annotated[Word, AfterValidator(_encoding)] = key(
        "What text is written in.", must="an encoding of text that Python knows, such as utf-8, cp1252 or gb18030"
    )


SHARDS = "paths or URLs of .tar or .parquet files, such as PATH/{00000..00099}.tar"


class ShardsConfig(StoredConfig):
    """Photographs in tars as WebDataset has them, or in Parquet files."""

    dataset: Text = key("What the data set is called.")
    root: Text | Texts = key(
        "The shards: paths and URLs with braces or *, or a folder of them.",
        must=SHARDS,
        path=True,
    )
    val_root: Text | Texts | None = key("Those to validate on; null divides root by seed.", must=SHARDS, path=True)
    test_root: Text | Texts | None = key("Those to test on.", must=SHARDS, path=True)
    image_column: Text | None = key("Where pictures are: a suffix or a column; null finds the usual ones.")
    caption_column: Text | None = key("Where captions are: a suffix, a key of KEY.json or a column; null finds them.")
    captions_per_file: Literal["one", "lines"] = key("Is a text file one caption, or each of its lines?")
    cache: Text = key("The folder of indices of shards, which several machines may share.", path=True)
    local_cache: Text | None = key("The folder of blocks of shards elsewhere; null is one in data.cache.", path=True)
    cache_gigabytes: Positive = key("Of such blocks at most.")
    lanes: Count | None = key("Parts of an epoch that machines may read alone; null: as many as there are machines.")

    @model_validator(mode="after")
    def _agrees(self) -> ShardsConfig:
        if self.test_root is not None and self.val_root is None:
            raise UserError("data.test_root is given without data.val_root; give both, or neither to divide by seed")
        return self


class HubConfig(StoredConfig):
    """A data set of the `datasets` library."""

    dataset: Text = key("What the data set is called.")
    name: Text | None = key("OWNER/NAME on the hub, or a folder that datasets saved or reads.", path=True)
    subset: Text | None = key("Which of its configurations, where it has several.")
    revision: Text | None = key("A branch, tag or commit on the hub.")
    split_column: Text | None = key("A column that says which split a row is in; null takes the data set's splits.")
    image_column: Text | None = key("The column of pictures; null takes one with a usual name.")
    caption_column: Text | None = key("The column of captions, texts or lists of them; null takes the usual.")
    captions_per_file: Literal["one", "lines"] = key("Is a text one caption, or each of its lines?")
    cache: Text = key("The folder of indices.", path=True)


class ShapesConfig(DataConfig):
    """Drawn shapes."""

    image_size: Count | None = key("Pixels of a side; null draws them at the size that the model takes.")
    train_pictures: Count = key("Pictures to train on.")
    val_pictures: Count = key("Pictures to validate on.")
    test_pictures: Count = key("Pictures to test on.")


def _shared() -> dict[str, Any]:
    """The keys of every data set of ours, none of which a user's own must have."""
    shared = {name: copy(field) for name, field in DataConfig.model_fields.items() if name != "target"}
    for field in shared.values():
        field.default = None
    return {name: (field.annotation, field) for name, field in shared.items()}


class OwnDataConfig(create_model("SharedData", __base__=Own, **_shared())):  # type: ignore[misc]
    """A user's own data module; the keys that it shares with ours are checked as theirs."""


DATA: dict[str, type[Built]] = {
    "captioning.data.datamodule.PhotographDataModule": PhotographsConfig,
    "captioning.data.datamodule.FolderDataModule": FolderConfig,
    "captioning.data.datamodule.ShardsDataModule": ShardsConfig,
    "captioning.data.datamodule.HubDataModule": HubConfig,
    "captioning.shapes.datamodule.ShapesDataModule": ShapesConfig,
}
Data = Annotated[
    PhotographsConfig | FolderConfig | ShardsConfig | HubConfig | ShapesConfig | OwnDataConfig,
    by_target(DATA, OwnDataConfig),
]


DRAWN = "shapes"  # the data set that is drawn


def data_set_of(data: Mapping) -> str:
    """A data set's name, by its section of a configuration, or that of the package which makes it: `shapes`."""
    return data.get("dataset") or str(data["_target_"]).removeprefix("captioning.").split(".")[0]


# --------------------------------------------------------------------------------------------------------------- model


class LoraConfig(Section):
    """Small matrices trained beside the frozen ones of pretrained halves, by peft."""

    rank: Whole = key("Of the matrices; 0 trains the halves themselves.")
    alpha: Positive | None = key("What they add is multiplied by alpha / rank; null: twice the rank.")
    dropout: Share = key("Of what goes into them.")
    targets: Annotated[list[Literal["decoder", "encoder"]], MinLen(1)] = key(
        "The halves whose linear layers have them; of these nothing else trains.", must="[decoder], [encoder] or both"
    )


class ModelConfig(Built):
    """What every captioner of ours has."""

    init_from: Text | None = key(
        "Fine-tune these weights: a run, .ckpt file, VisionEncoderDecoderModel's folder or hub name.",
        example="runs/MY_RUN",
        path=True,
    )
    dropout: Share = key("Of the decoder's embeddings and residual branches.")
    attention_dropout: Share = key("Of the decoder's attention weights; above 0 its fast kernels cannot be used.")
    stochastic_depth: Share = key(
        "Chance that a picture skips the encoder's last layer in training; before it, less.", default=0.0
    )
    gradient_checkpointing: bool = key("Recompute activations in the backward pass: less memory, a third more time.")
    compile: Auto | bool = key("torch.compile of each layer; auto: on a GPU, where there are compilers.")
    lora: LoraConfig = key("Train adapters in place of the halves.")


class TinyModelConfig(ModelConfig):
    """A small captioner from scratch: what `captioning.model.build.from_scratch` makes."""

    encoder_family: Literal["vit", "siglip", "dinov2"] = key("Whose architecture the encoder has.", default="vit")
    image_size: Count = key("Pixels of a side.")
    patch_size: Count = key("Pixels of a patch's side.")
    encoder_width: Count = key("Width of the encoder.")
    encoder_layers: Count = key("Layers of the encoder.")
    encoder_heads: Count = key("Attention heads of the encoder.")
    decoder_width: Count = key("Width of the decoder.")
    decoder_layers: Count = key("Layers of the decoder.")
    decoder_heads: Count = key("Attention heads of the decoder.")
    max_positions: Count = key("Tokens that the decoder has positions for.")
    initializer_range: Positive = key("Standard deviation of new matrices; 0.02 is meant for widths of 768.")
    pixel_mean: float = key("Of the pixels' values in 0..1, all channels.")
    pixel_std: Positive = key("Standard deviation of the pixels' values.")

    @model_validator(mode="after")
    def _divides(self) -> TinyModelConfig:
        for name, of in (
            ("encoder_width", "encoder_heads"),
            ("decoder_width", "decoder_heads"),
            ("image_size", "patch_size"),
        ):
            value, part = getattr(self, name), getattr(self, of)
            if value % part:
                raise UserError(f"model.{name}={value} must be a multiple of model.{of}={part}")
        return self


class PretrainedModelConfig(ModelConfig):
    """A pretrained encoder and GPT-2: what `captioning.model.build.from_pretrained` makes."""

    encoder: Text = key("A vision encoder.", must="a hub name or a local folder", path=True)
    decoder: Text = key("A GPT-2.", must="a hub name or a local folder", path=True)
    image_size: Count | None = key("Pixels of a side; other than the encoder's, its positions are interpolated.")
    allow_pickle: bool = key("May weights of transformers come in a pickle? It is read as data.")


class OwnModelConfig(Own):
    """A user's own model."""

    init_from: Text | None = key("Fine-tune these weights.", default=None, path=True)


MODELS: dict[str, type[Built]] = {
    "captioning.model.build.from_scratch": TinyModelConfig,
    "captioning.model.build.from_pretrained": PretrainedModelConfig,
}
Model = Annotated[TinyModelConfig | PretrainedModelConfig | OwnModelConfig, by_target(MODELS, OwnModelConfig)]

# --------------------------------------------------------------------------------------------------------------- stage


class PhaseConfig(Section):
    """From an epoch on, exactly these groups train."""

    from_epoch: Whole = key("The epoch, counted from 0, in which the phase begins.")
    train: list[Literal[GROUPS]] = key("The groups that train.", must=f"a list of some of {', '.join(GROUPS)}")  # type: ignore[valid-type]


ABOVE = "a number above 0"


class LearningRatesConfig(Section):
    """Peaks, of each group that trains."""

    cross_attention: Positive | None = key("Of cross-attention and what joins the halves.", must=ABOVE, default=None)
    decoder: Positive | None = key("Of the rest of the decoder.", must=ABOVE, default=None)
    encoder: Positive | None = key("Of the encoder.", must=ABOVE, default=None)


class SelfCriticalConfig(Section):
    """Self-critical training, whose reward is the CIDEr-D of captions that the model draws."""

    samples: Annotated[int, Ge(2)] = key("Captions drawn of each picture; the baseline of one is the others' mean.")
    max_new_tokens: Annotated[int, Ge(2)] = key("Tokens of a drawn caption at most, EOS included.")


class StageConfig(Section):
    """What trains when, and how fast."""

    phases: Annotated[list[PhaseConfig], MinLen(1)] = key(
        "From which epoch which groups train.",
        must="a list of phases, such as [{from_epoch: 0, train: [cross_attention]}]",
    )
    learning_rates: LearningRatesConfig = key("Each group's peak.")
    warmup_steps: Whole = key("Optimizer steps over which a group's rate grows, from where it starts to train.")
    decay: Literal["cosine", "linear", "none"] = key("Of all rates, to 0 at the end of the run.")
    # With defaults, for stages that users wrote before these were there.
    label_smoothing: Share = key("Of each label, this share is spread over the vocabulary in training.", default=0.0)
    encoder_layer_decay: Part = key(
        "An encoder layer's rate is so much of the next one's; 1 is all alike.", default=1.0
    )
    best_by: Literal[tuple(choosable())] = key("The metric that best.ckpt is chosen by.")  # type: ignore[valid-type]
    self_critical: SelfCriticalConfig | None = key("Train by the CIDEr of drawn captions, instead of cross-entropy.")

    @model_validator(mode="after")
    def _in_order(self) -> StageConfig:
        starts = [phase.from_epoch for phase in self.phases]
        if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise UserError(f"stage.phases must start at from_epoch 0 and go on in increasing order, not {starts}")
        for phase in self.phases:
            if not phase.train:
                raise UserError(
                    f"stage.phases trains nothing from epoch {phase.from_epoch}; it must name some of "
                    f"{', '.join(GROUPS)}"
                )
            for group in phase.train:
                if getattr(self.learning_rates, group) is None:
                    raise UserError(
                        f"stage.learning_rates.{group} is missing, and {group} trains from epoch {phase.from_epoch}; "
                        "give it a number above 0"
                    )
        if self.self_critical is not None and self.label_smoothing:
            raise UserError(
                f"stage.label_smoothing={self.label_smoothing} is of cross-entropy, and self-critical training has "
                "rewards; leave it out"
            )
        if self.encoder_layer_decay != 1 and self.first_epoch_of("encoder") is None:
            raise UserError(
                f"stage.encoder_layer_decay={self.encoder_layer_decay}, and no phase trains the encoder; leave it out"
            )
        return self

    def first_epoch_of(self, group: str) -> int | None:
        """The first epoch in which a group trains; None if it never does."""
        return next((phase.from_epoch for phase in self.phases if group in phase.train), None)


# ------------------------------------------------------------------------------------------------------------ decoding


class DecodingConfig(Built):
    """How a caption is chosen."""

    max_new_tokens: Count = key("Tokens of a caption at most, EOS included; those of prefix are not counted.")
    repetition_penalty: Annotated[float, Ge(0.1), Le(10)] = key(
        "Divides what speaks for a token that was there; BOS, which most models end with too, was.",
        way_out="1 leaves tokens as they are",
    )
    no_repeat_ngram_size: Whole = key("No run of so many tokens comes twice; 0 lets them.")
    banned_words: list[Trimmed] = key(
        "No caption has these words, written so.", must="a list of words such as [cat,dog], no blank at their ends"
    )
    eos_token_ids: list[Whole] = key(
        "Tokens that end a caption beside the model's EOS, and are no part of it.", must="a list of token ids"
    )
    prefix: Trimmed | Literal[""] = key(
        "The text with which every caption begins.", must="a text with no blank at its ends", path=True
    )


# Values by which nothing is ruled: what is saved of a decoding does not say them, and of old had no such keys.
UNRULED: dict[str, object] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "banned_words": [],
    "eos_token_ids": [],
    "prefix": "",
    "min_p": 0.0,
}


class GreedyConfig(DecodingConfig):
    """The likeliest token each time."""


class SamplingConfig(DecodingConfig):
    """Drawn tokens."""

    temperature: Positive = key(
        "Lower is safer, higher more varied.",
        must="above 0",
        way_out="for the most probable word each time, use decoding=greedy",
    )
    top_k: Count | None = key("Choose among the so many likeliest tokens.")
    top_p: Part = key(
        "Choose among the likeliest tokens that together have this probability.",
        must="above 0 and at most 1",
        way_out="1 keeps every token",
    )
    min_p: Annotated[float, Ge(0), Le(1)] = key(
        "Choose among what has this part of the likeliest token's probability; 0 keeps every token."
    )
    seed: Seed = key("Of the draws.")
    n_best: Count = key("Captions drawn for each picture; more than 1 are its alternatives.")

    @model_validator(mode="after")
    def _agrees(self) -> SamplingConfig:
        if self.n_best > 1 and (self.top_k == 1 or self.min_p == 1):
            only = "top_k=1" if self.top_k == 1 else "min_p=1"
            raise UserError(
                f"decoding.n_best={self.n_best} with decoding.{only} would draw one caption {self.n_best} times; "
                "choose among more tokens"
            )
        return self


class BeamConfig(DecodingConfig):
    """Beam search."""

    num_beams: Count = key("Beginnings of captions that are kept at each step.")
    # 40 tokens to the 10th is 10^16: the length decides alone.
    length_penalty: Annotated[float, Ge(-10), Le(10)] = key(
        "Scores are divided by tokens ** this: 0 favours short captions, 2 long ones.",
        way_out="1 compares the means of tokens",
    )
    early_stopping: bool | Literal["never"] = key(
        "When a search ends: true, when num_beams captions have ended; false, never: when no better one is in sight."
    )
    min_new_tokens: Whole = key("Tokens of a caption at least, EOS excluded.")
    n_best: Count = key("Captions kept of each picture; more than 1 are its alternatives.")

    @model_validator(mode="after")
    def _agrees(self) -> BeamConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens={self.min_new_tokens} must be at most "
                f"decoding.max_new_tokens={self.max_new_tokens}"
            )
        if self.n_best > self.num_beams:
            raise UserError(
                f"decoding.n_best={self.n_best} must be at most decoding.num_beams={self.num_beams}; "
                f"for more captions, search with decoding.num_beams={self.n_best}"
            )
        return self


DECODINGS: dict[str, type[Built]] = {
    f"captioning.model.generation.{name}": kind
    for name, kind in (("Greedy", GreedyConfig), ("Sampling", SamplingConfig), ("Beam", BeamConfig))
}
Decoding = Annotated[GreedyConfig | SamplingConfig | BeamConfig | Own, by_target(DECODINGS)]

# ----------------------------------------------------------------------------------------------- the rest of a training


Precision = Annotated[
    Literal[
        "auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64",
        "transformer-engine", "transformer-engine-float16",
    ],
    BeforeValidator(lambda v: str(v) if type(v) is int else v),
]  # fmt: skip


TARGETS = "a list of mappings, each with a _target_, such as [{_target_: my_module.MyClass, size: 3}]"


Batches = Count | Part | None  # so many, or a part of an epoch's; null: all


class TrainerConfig(Own):
    """Arguments of lightning.Trainer, null where Lightning chooses; a user's own trainer may have others."""

    max_epochs: Count = key("Epochs of the run.")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = key("auto takes a GPU if there is one.")
    devices: Annotated[int, Ge(-1)] | str | list[Whole] = key(
        "Devices of a machine, each with a process of its own.", must="auto, a number of devices, or a list of them"
    )
    num_nodes: Count = key("Machines.")
    strategy: Text | dict[str, Any] = key("auto: one process, or DDP for several devices.")
    precision: Precision = key("auto, 32-true, 16-mixed or bf16-mixed.")
    gradient_clip_val: Annotated[float, Ge(0)] | None = key("Norm at most of a step's mean gradient.")
    accumulate_grad_batches: Count = key("Batches of an optimizer step.")
    log_every_n_steps: Count = key("Optimizer steps between logged rows.")
    num_sanity_val_steps: Annotated[int, Ge(-1)] = key("Batches of a validation before the first epoch; -1: all.")
    enable_model_summary: bool = key("Whether Lightning prints a table of the model's parts.")

    limit_train_batches: Batches = key("Batches of an epoch at most, or a part of them.")
    limit_val_batches: Limit | None = key("The same of a validation.")
    limit_test_batches: Limit | None = key("The same of the test.")
    val_check_interval: Batches | Text | dict[str, Any] = key(
        "Batches, a part of an epoch or a time between validations."
    )
    check_val_every_n_epoch: Count | None = key("Epochs between validations; null: batches are counted over epochs.")
    max_steps: Count | Literal[-1] = key("Optimizer steps of the run at most; -1: those of its epochs.")
    max_time: Text | dict[str, Any] | None = key("Time of the run at most, as DD:HH:MM:SS.")
    min_epochs: Count | None = key("Epochs before a callback may stop the run.")
    min_steps: Count | None = key("The same in optimizer steps.")
    fast_dev_run: bool | Count = key("So many batches of everything, and no files.")
    enable_checkpointing: bool | None = key("Whether checkpoints are written.")
    enable_progress_bar: bool | None = key("Whether progress is shown.")
    enable_autolog_hparams: bool = key("Whether loggers get the configuration.")
    callbacks: list[Own] = key("Callbacks beside ours; or by name, in `callbacks`.", must=TARGETS)
    plugins: list[Own] = key("Lightning's, beside the one that writes checkpoints.", must=TARGETS)
    profiler: Text | dict[str, Any] | None = key("Where the time goes.")
    deterministic: bool | Literal["warn"] | None = key("Whether a repetition gives the same bits, or ends.")
    benchmark: bool | None = key("Whether cuDNN tries its kernels first.")
    detect_anomaly: bool = key("Whether a gradient that is no number names its operation; slow.")
    inference_mode: bool = key("Whether validation uses inference_mode, else no_grad.")
    sync_batchnorm: bool = key("Whether batch norms see the batches of all processes.")
    reload_dataloaders_every_n_epochs: Whole = key("Epochs between new loaders; 0: they are kept.")

    @model_validator(mode="after")
    def _obeyed(self) -> TrainerConfig:
        """What a run would not do as it says is refused, save where it asks for nothing."""
        if any(kind in str(self.strategy).lower() for kind in ("fsdp", "deepspeed")):  # Lightning objects without a GPU
            raise UserError(f"trainer.strategy={shown(self.strategy)} is not supported: {UNDIVIDED}")
        for name, value in (self.model_extra or {}).items():
            asks = value is not None if name == "logger" else value not in (None, False, 0, "norm")
            if name in INSTEAD and asks:
                raise UserError(f"trainer.{name}={shown(value)} is not taken: {INSTEAD[name]}")
        return self


UNDIVIDED = (
    "gradients are scaled and clipped over whole parameters, and stages switch them; take trainer=ddp, and where a "
    "model is too large for its GPU a smaller data.batch_size with more of trainer.accumulate_grad_batches, "
    "trainer.precision=bf16-mixed, or adapters by model.lora.rank=8"
)
INSTEAD = {  # of arguments of lightning.Trainer
    "logger": "the group logger chooses them; logger=csv writes metrics.csv alone, which each run needs to resume",
    "default_root_dir": "all that a run writes lies in its own folder; name that with run_dir=PATH",
    "overfit_batches": "it would train on other pictures in each epoch; data.overfit_images=8 keeps to so many",
    "use_distributed_sampler": "an epoch's pictures are dealt out to the processes by their own order; leave it out",
    "gradient_clip_algorithm": "gradients are clipped by their norm, trainer.gradient_clip_val=1.0; leave it out",
    "limit_predict_batches": "training predicts nothing; predict.py captions what input=... names",
    "barebones": "a run needs its loggers and checkpoints; trainer.enable_checkpointing=false does without the latter",
    "model_registry": "it is of Lightning's own cloud; python -m captioning.export gives a model away",
}


class WandbConfig(Built):
    """Weights & Biases."""

    run_dir: Text | None = key("Where its files lie.")
    project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")] = key(
        "The project there.", must="a name of at most 128 characters, none of them / \\ # ? % or :"
    )
    name: Text | None = key("The run's name there; null is the run folder's.")
    group: Text | None = key("The group of runs there.")
    entity: Text | None = key("Whose project it is: a user or a team.")
    job_type: Text | None = key("What kind of run it is.")
    tags: list[Text] = key("Its tags.", must="a list of words, such as [baseline,coco]")
    notes: Text | None = key("A longer description.")
    log_model: Literal[False, "best", "all"] = key(
        "Which checkpoints become artifacts there.", must="false, best or all"
    )
    watch: Literal[False, "gradients", "parameters", "all"] = key(
        "Of what histograms are logged, every 100 steps.", must="false, gradients, parameters or all"
    )


def require_loggers(loggers: Iterable[Section]) -> None:
    """Raise UserError if W&B is to be logged to, and is not installed."""
    if any(isinstance(one, WandbConfig) for one in loggers) and find_spec("wandb") is None:
        raise UserError("logger=wandb needs wandb, which is not installed; pip install wandb, or take logger=csv")


LOGGERS: dict[str, type[Built]] = {"captioning.training.wandb.wandb_logger": WandbConfig}
Logger = Annotated[WandbConfig | Own, by_target(LOGGERS)]


class AdamWConfig(Built):
    """AdamW for everything."""

    weight_decay: Share = key("Of matrices alone.")
    betas: Annotated[tuple[Share, Share], Strict(False)] = key(
        "Of AdamW's running means.", must="two numbers from 0 to below 1, such as [0.9,0.999]"
    )


class MuonConfig(AdamWConfig):
    """Muon for matrices, AdamW for embeddings of tokens and positions, biases and norms."""

    momentum: Share = key("Of a matrix's gradients.")
    update_rms: Positive = key("Root mean square of a matrix's step, in units of its group's learning rate.")


OPTIMIZERS: dict[str, type[Built]] = {
    "captioning.training.optimizers.adamw": AdamWConfig,
    "captioning.training.optimizers.muon": MuonConfig,
}
Optimizer = Annotated[AdamWConfig | MuonConfig | Own, by_target(OPTIMIZERS)]


class CheckpointsConfig(Section):
    """When last.ckpt is written, beside the end of each epoch and a signal."""

    every_n_steps: Count | None = key("Optimizer steps between two.")
    every_minutes: Positive | None = key("Minutes between two.")
    on_error: Literal["stop", "continue"] = key("What to do where one can't be written.")


class ScoresConfig(Section):
    """Scores of captions that the model makes of validation pictures."""

    pictures: Whole = key("Pictures that are captioned; 0 makes no scores.")
    every_n_epochs: Count = key("Epochs between scores.")


class TrainConfig(Section):
    """`conf/train.yaml`."""

    seed: Seed = key("Of weights, order, augmentation, choice of captions, and of splits where no list divides them.")
    run_dir: Text = key("The folder of everything that a run writes.", path=True)
    resume: Text | None = key("A run folder: continue there.", path=True)
    allow_pickle: bool = key("May weights of transformers come in a pickle? It is read as data.")
    data: SerializeAsAny[Data] = key("The data set.")
    model: SerializeAsAny[Model] = key("The captioner.")
    stage: StageConfig = key("What trains when, and how fast.")
    decoding: SerializeAsAny[Decoding] = key("How captions are made after each validation.")
    trainer: TrainerConfig = key("Arguments of lightning.Trainer.")
    logger: dict[str, SerializeAsAny[Logger]] = key("Loggers beside metrics.csv.", default={})
    callbacks: dict[str, SerializeAsAny[Own]] = key("Callbacks of Lightning's kind, beside ours.", default={})
    optimizer: SerializeAsAny[Optimizer] = key("How gradients become steps.")
    encoder_cache: Text | None = key(
        "Folder where each picture's encoding is kept; auto is data/encoder_cache.", path=True
    )
    encoder_cache_dtype: Literal["bfloat16", "float32"] = key("Numbers of an encoding on disk.")
    checkpoints: CheckpointsConfig = key("When last.ckpt is written.")
    max_skipped_steps: Whole = key("Steps that may be skipped since their loss or gradient is not finite.")
    early_stopping_epochs: Count | None = key("Stop after so many epochs without a better val/perplexity.")
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = key(
        "Of an exponential moving average of the weights, by which is validated and captioned.",
        must="null, or a number between 0 and 1 such as 0.999",
    )
    scores: ScoresConfig = key("Scores of generated captions.")
    sample_pictures: Whole = key("Pictures in W&B's table after each validation; 0 makes none.")

    @model_validator(mode="after")
    def _agrees(self) -> TrainConfig:
        best_by, scores = self.stage.best_by, self.scores
        is_score = choosable()[best_by].official is not None
        if is_score and not scores.pictures:
            raise UserError(f"stage.best_by={best_by} needs captions to score; set scores.pictures above 0")
        if is_score and scores.every_n_epochs > self.trainer.max_epochs:
            raise UserError(
                f"stage.best_by={best_by} is never measured, with scores.every_n_epochs={scores.every_n_epochs} and "
                f"trainer.max_epochs={self.trainer.max_epochs}; lower the first"
            )
        if self.stage.self_critical and self.model.init_from is None and self.resume is None:
            raise UserError(
                "self-critical training (stage=scst) goes on from a trained model; say which with "
                "model.init_from=RUN_DIR, a run of train.py with another stage"
            )
        return self

    @model_validator(mode="after")
    def _adapts(self) -> TrainConfig:
        """LoRA adapts what is pretrained, where the stage trains it."""
        if not isinstance(self.model, ModelConfig) or not self.model.lora.rank:
            return self
        lora = self.model.lora
        if isinstance(self.model, TinyModelConfig) and self.model.init_from is None:
            raise UserError(
                f"model.lora.rank={lora.rank} adapts pretrained weights, and model=tiny begins with random ones; say "
                "which with model.init_from=RUN_DIR, or leave model.lora out"
            )
        for group in lora.targets:
            if self.stage.first_epoch_of(group) is None:
                raise UserError(
                    f"model.lora.targets has {group}, which this stage never trains; choose stage=full, or leave "
                    f"{group} out"
                )
        return self

    @model_validator(mode="after")
    def _encodes_once(self) -> TrainConfig:
        """A cache of encodings needs the same pictures and the same encoder in every epoch."""
        if self.encoder_cache is None:
            return self
        start = self.stage.first_epoch_of("encoder")
        if start is not None:
            raise UserError(
                f"encoder_cache={self.encoder_cache} needs an encoder that stays as it is, and this stage trains it "
                f"from epoch {start}; choose stage=cross_attention or stage=decoder, or leave encoder_cache=null"
            )
        data = self.data
        if data.overfit_images is None and data.augmentation and (on := data.augmentation.switched_on):
            raise UserError(
                f"encoder_cache={self.encoder_cache} needs pictures that are the same in every epoch; switch their "
                f"augmentation off with {' '.join(on)}, or leave encoder_cache=null"
            )
        return self


# ---------------------------------------------------------------------------------------------- prediction, preparation


class ProcessesConfig(Section):
    """Of a prediction."""

    devices: Auto | Count = key(
        "Processes that divide the pictures: each has its own GPU, on a CPU they share the cores."
    )


class TextFilesConfig(Section):
    """A caption beside each picture."""

    write: bool | Literal["missing"] = key("true: of every picture; missing: caption only those that have none.")
    mode: Literal["replace", "append", "prepend"] = key("What becomes of the text that is there.")
    suffix: Annotated[str, Field(pattern=r"^\.[\w-]+$")] = key(
        "Of the files.", must="a suffix such as .txt or .caption"
    )


class RayConfig(Section):
    """Of a prediction with engine=ray."""

    address: Text | None = key("Of the cluster; auto finds the one this machine is in, null starts one here.")
    tries: Count = key("So often is read what ends the process that reads it.")
    parts_at_once: Count = key("Parts of the input that are given to the cluster together.")
    dashboard: bool = key("Is a dashboard started with a cluster here?")


class PredictConfig(Section):
    """`conf/predict.yaml`."""

    checkpoint: Text = key(
        "A run folder, a .ckpt file, or a VisionEncoderDecoderModel's folder or hub name.",
        must="one path",
        example="runs/MY_RUN",
        path=True,
    )
    allow_pickle: bool = key("May a model of transformers have its weights in a pickle? It is read as data.")
    input: Text | list[Text] | None = key(
        "Folders, patterns, pictures, lists, tables, shards and URLs, one or a list of them; - is standard input.",
        path=True,
    )
    input_column: Text | None = key("Where a table or a shard has its pictures; null takes a usual name.")
    limit: Count | None = key("So many pictures of the input, the first ones.")
    every_nth: Count = key("Of the input, or of each shard, one picture of so many.")
    sample: Part = key("This share of the pictures, by their keys and seed: the same ones however they are divided.")
    min_size: Whole = key("Pixels of a shorter side below which a picture gets no caption.")
    skip_existing: Text | None = key("Captions of before, a file or folder: what has one there is left out.", path=True)
    on_missing: Literal["error", "skip"] = key("Is a shard that is cut short an error, or its whole pictures taken?")
    private_urls: bool = key("May URLs lead to addresses of this machine and its network?")
    cache: Text = key("The folder of indices of shards, and of blocks of those elsewhere.", path=True)
    cache_gigabytes: Positive = key("Of such blocks at most.")
    split: Text = key("Which split of data is captioned and scored.")
    java: bool = key("A split's METEOR and SPICE too, where their Java parts are.")
    output: Text = key(
        "The file of captions: .jsonl, .csv, .parquet, .tar or .json; or a folder of such, which ends in /.",
        must="one path",
        example="captions.jsonl",
        path=True,
    )
    format: Literal["jsonl", "csv", "parquet", "tar"] = key("Of the files in a folder.")
    part_size: Count = key("Pictures of each file in a folder; a shard of the input is a file whatever its size.")
    engine: Literal["local", "ray"] = key("What runs it: processes of this machine, or a cluster.")
    ray: RayConfig = key("A prediction on Ray.")
    caption_prefix: str = key("Text put before each caption in the files, such as a trigger word.", path=True)
    caption_suffix: str = key("Text put behind each caption in the files.", path=True)
    text_files: TextFilesConfig = key("Captions beside their pictures; text_files=true is text_files.write=true.")
    gallery: bool | Word | None = key(
        "A page of pictures and captions.",
        must="true, false or a path such as captions.html",
        path=True,
    )
    heat_maps: Whole | Word | list[Whole | Word] = key(
        "Where the model looked: of so many pictures, or of those named.",
        must="a number of pictures, or names of some such as [a.jpg,b.jpg]",
        path=True,
    )
    heat_maps_layers: Whole | list[Whole] | None = key(
        "Layers of the decoder, counted from 0; null averages all.", must="a layer such as 2, a list of some, or null"
    )
    overwrite: bool = key("May an existing output be replaced?")
    resume: bool = key(
        "Go on from what a stopped prediction left.", way_out="true goes on where output=... was stopped"
    )
    batch_size: Auto | Count = key("Pictures captioned together.")
    num_workers: Auto | Whole = key("Processes that read pictures ahead.")
    device: Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu|hpu|mtia|npu|xla|privateuseone)(:\d+)?)$")] = key(
        "Where the model is computed; auto takes a GPU if there is one.",
        must="auto, cpu, cuda, cuda:1, mps or another accelerator's name in torch",
    )
    trainer: ProcessesConfig = key("How many processes caption.")
    precision: Literal["auto", 32, "32", "bf16", 16, "16", "int8"] = key("Of the model's numbers.")
    seed: Seed = key("Of sampling, and of splits where no list divides the photographs.")
    run_dir: Text | None = key("Where W&B's files of a split lie.", path=True)
    data: SerializeAsAny[Data] | None = key("A data set instead of input.", default=None)
    decoding: SerializeAsAny[Decoding] = key("How captions are chosen.")
    logger: dict[str, SerializeAsAny[Logger]] = key("Loggers of a split's scores.", default={})

    @model_validator(mode="after")
    def _agrees(self) -> PredictConfig:
        if self.data is None and self.input is None:
            raise UserError("input is missing; say which, for example input=my_photos, or data=coco split=val")
        if self.data is not None and self.input is not None:
            name = data_set_of(self.data.plain())
            raise UserError(f"input={shown(self.input)} and data={name} are both given; leave one out")
        if isinstance(self.data, DataConfig) and self.split not in SPLITS:
            raise UserError(
                f"split={self.split} is none of {', '.join(SPLITS)}, the splits of {data_set_of(self.data.plain())}"
            )
        if self.data is not None and self.text_files.write:
            raise UserError(
                "text_files=true writes beside the pictures of input=..., not into a data set; leave it out"
            )
        if self.data is not None:
            self._refuse_with_data()
        if self.engine == "local" and self.ray.address is not None:
            raise UserError(f"ray.address={self.ray.address} is for engine=ray; say that too, or leave it out")
        if self.engine == "ray" and self.num_workers != "auto":
            raise UserError(f"num_workers={self.num_workers}: with engine=ray tasks of the cluster read; leave it out")
        if self.engine == "ray" and self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device={self.device}: with engine=ray it is auto, cpu or cuda, and Ray gives out GPUs")
        return self

    def _refuse_with_data(self) -> None:
        """Keys that speak of `input` alone."""
        chosen = {
            "caption_prefix": "",
            "caption_suffix": "",
            "limit": None,
            "every_nth": 1,
            "sample": 1,
            "skip_existing": None,
            "engine": "local",
        }
        for name, usual in chosen.items():
            if (value := getattr(self, name)) != usual:
                raise UserError(f"{name}={value} is for input=..., not for the split of a data set; leave it out")


class PrepareConfig(Section):
    """`conf/prepare.yaml`."""

    size: Annotated[int, Ge(32), Le(4096)] = key(
        "Pixels of the shorter side.", way_out="data.prepared=null trains on the files as they are"
    )
    num_workers: Whole | None = key("Processes; null takes every core.")
    seed: Seed = key("As in training: it chooses the pictures of data.fraction.")
    download: Literal["coco", "flickr8k", "flickr30k"] | None = key("Fetch this data set to data.root, and do no more.")
    data: SerializeAsAny[Data] = key("The data set.")

    @model_validator(mode="after")
    def _has_files(self) -> PrepareConfig:
        name = data_set_of(self.data.plain())
        if self.download not in (None, name):
            raise UserError(f"download={self.download} and data={name} are two data sets; leave data=... out")
        if not isinstance(self.data, StoredConfig):
            raise UserError(f"data={name} draws its pictures; prepare.py is for photographs, such as data=coco")
        return self


class ExportConfig(Section):
    """`conf/export.yaml`."""

    onnx: bool = key("Whether to write ONNX graphs too, for ONNX Runtime and transformers.js.")
    onnx_opset: Annotated[int, Ge(18), Le(26)] = key("The version of ONNX's operators.")
    onnx_int8: Literal["judged", "unjudged", "none"] = key(
        "Graphs in int8 too: where a judge finds them as good, whatever they are, or none."
    )
    page: bool = key("Whether to write a page that captions in the browser, and the graphs that it needs.")
    page_runtime: Literal["npm", "cdn"] = key(
        "Where the page's runtime comes from: npm, into the folder, or an address that the page fetches it from."
    )
    page_dtype: Literal["fp32", "q8"] = key(
        "The page's graphs: float32, whose captions are those of predict.py, or int8, about a third of the bytes."
    )
    seed: Seed = key("Of the splits of data, where no list divides its photographs.")
    data: SerializeAsAny[Data] | None = key(
        "Whose validation captions judge int8; null is the run's own.", default=None
    )

    @property
    def has_int8(self) -> bool:
        """Whether graphs in int8 are asked for; a page in float32 needs none."""
        return self.onnx_int8 != "none" and (self.onnx or (self.page and self.page_dtype == "q8"))

    @model_validator(mode="after")
    def _is_obeyed(self) -> ExportConfig:
        for name, default in {"page_runtime": "npm", "page_dtype": "fp32"}.items():
            if not self.page and (value := getattr(self, name)) != default:
                raise UserError(f"{name}={value} is of a page; set page=true too, or leave it out")
        if self.data is not None and not (self.has_int8 and self.onnx_int8 == "judged"):
            name = data_set_of(self.data.plain())
            raise UserError(f"data={name} judges graphs in int8; leave it out, or set onnx=true onnx_int8=judged")
        if self.onnx_int8 == "unjudged" and not self.has_int8:
            raise UserError("onnx_int8=unjudged is of ONNX graphs; set onnx=true too, or leave it out")
        if self.page and self.page_dtype == "q8" and self.onnx_int8 == "none":
            raise UserError("page_dtype=q8 needs graphs in int8, and onnx_int8=none writes none; leave one out")
        return self


KINDS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "predict": PredictConfig,
    "prepare": PrepareConfig,
    "export": ExportConfig,
}

# ------------------------------------------------------------------------------------------- from values to a sentence

Kind = TypeVar("Kind", bound=Section)


def checked(cfg: DictConfig, kind: type[Kind], **known: Any) -> Kind:
    """The configuration as an object, its interpolations resolved.

    Args:
        cfg: as Hydra composed it.
        kind: one of `KINDS`.
        known: values that are known only now, in place of those in `cfg`.

    Raises:
        UserError: one sentence on the first value that cannot be meant.
    """
    values = _resolved(OmegaConf.merge(cfg, known), kind)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error, kind)) from None


def shown(value: Any) -> str:
    """As one would type it: `null`, `true`, `[0.7,1.0]`."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shown(inner)}' for name, inner in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def fields_of(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted name of each key, of all kinds that a section may be of, and what is known of it."""
    for name, field in kind.model_fields.items():
        inner = f"{prefix}{field.alias or name}"
        yield inner, field
        for section in _sections(field.annotation):
            of_many = ".*" if get_origin(field.annotation) in (dict, list) else ""
            yield from fields_of(section, f"{inner}{of_many}.")


def path_keys() -> frozenset[str]:
    """The dotted names of the keys that may be paths."""
    fields = (field for kind in KINDS.values() for field in fields_of(kind))
    return frozenset(name for name, field in fields if _extra(field, "path") == "True")


def _resolved(cfg: Any, kind: type[Section]) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(_missing(str(error.full_key), kind)) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        is_reference = isinstance(error, InterpolationResolutionError | GrammarParseError)
        hint = "; ${ begins a reference to another key" if is_reference else ""
        raise UserError(f"{error.full_key or 'a value'} cannot be read: {reason}{hint}") from error
    return dict(values)  # type: ignore[arg-type]


def _sentence(error: ValidationError, kind: type[Section]) -> str:
    first = error.errors(include_url=False)[0]
    name, context = ".".join(map(str, first["loc"])), first.get("ctx", {})
    if "error" in context:  # a rule of several keys, which has its own words
        return str(context["error"])
    if first["type"] == "extra_forbidden":
        return f"there is no key {name}; conf/ lists them all"
    if first["type"] == "missing":
        return _missing(name, kind)
    return name + context["objection"].replace("{name}", name)


def _missing(name: str, kind: type[Section]) -> str:
    field = next((field for known, field in fields_of(kind) if fnmatchcase(name, known)), None)
    if field is not None and _extra(field, "example"):
        return name + _objection(field, None).replace("{name}", name)
    return f"{name} is missing" + (f": {field.description}" if field is not None else "")


def _objection(field: FieldInfo, value: Any) -> str:
    """What is said of a wrong value behind the key's name, which is `{name}` in it."""
    example = _extra(field, "example") and f", for example {{name}}={_extra(field, 'example')}"
    if value is None and example:
        return f" is missing; say which{example}"
    if words := _words(field.annotation):
        near = difflib.get_close_matches(str(value), words, n=1)
        return f"={shown(value)} is none of {', '.join(words)}" + (f"; did you mean {near[0]}?" if near else "")
    must = _extra(field, "must") or _allowed(field.annotation, field.metadata)
    way_out = _extra(field, "way_out")
    return f"={shown(value)} must be {must}{example}" + (f"; {way_out}" if way_out else "")


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a key may hold, also in a list or by names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _words(annotation: Any) -> list[str]:
    """Those that a key may be, where it may be no other."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    are_words = [get_origin(kind) is Literal for kind in kinds]
    if not any(are_words) or not all(kind is bool or is_word for kind, is_word in zip(kinds, are_words, strict=True)):
        return []
    words = [word for kind in kinds for word in ((True, False) if kind is bool else get_args(kind))]
    return list(dict.fromkeys(map(shown, words)))


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    """What a value must be, by its type and range."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _allowed(annotation, [*metadata, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [_allowed(one, metadata) for one in get_args(annotation) if one is not type(None)]
        return ", or ".join([*kinds, *(["null"] if type(None) in get_args(annotation) else [])])
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(metadata)
    if get_origin(annotation) is Literal:
        return ", ".join(map(shown, get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Section):
        names = [field.alias or name for name, field in annotation.model_fields.items()]
        return f"a section of keys: {', '.join(names)}"
    return "text" if annotation is str else "a list" if get_origin(annotation) is list else "a section of keys"


def _range(metadata: list[Any]) -> str:
    names = ("ge", "gt", "le", "lt")
    limits = {name: getattr(limit, name) for limit in metadata for name in names if hasattr(limit, name)}
    least, above, most, below = map(limits.get, names)
    end = f" to {most}" if most is not None else f" to below {below}" if below is not None else ""
    if least is not None and end:
        return f" from {least}{end}"
    if above is not None:
        return f" above {above}" + (f" and at most {most}" if most is not None else "")
    return f" of at least {least}" if least is not None else ""
