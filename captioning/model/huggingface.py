"""Weights in and out of transformers' formats, checked: every one is loaded or listed as new, none fetched in silence.

Encoder and decoder come in alone, or together as its `VisionEncoderDecoderModel`, and go out together.
"""

import copy
import logging
import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging as transformers_logging

from captioning.data.batch import PictureFormat
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.hub import out_of_reach
from captioning.model.captioner import ImageCaptioner, cast_norms_once
from captioning.model.cpu import use_fast_layers
from captioning.model.encoders import (
    ENCODERS,
    JOINT,
    family_of,
    one_of,
    owner_of,
    picture_format_of,
    picture_size,
    processor_of,
    resized,
)
from captioning.weights import HuggingFaceModel, weight_files

log = logging.getLogger(__name__)


GPT2_NEEDED = (
    "a GPT-2 of any shape is needed: another decoder would have to have cross-attention, positions that restart with "
    "each caption of a row, and GPT-2's key-value cache"
)


def load_config(source: HuggingFaceModel, model_types: Collection[str], needed: str) -> Any:
    """The configuration of a checkpoint.

    Raises:
        UserError: if it is not available, or describes none of these architectures; `needed` says what it should be.
    """
    try:
        config = AutoConfig.from_pretrained(source.name, local_files_only=out_of_reach(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unavailable(source, "config.json") from error
    if config.model_type not in model_types:
        raise UserError(f"{source} is a {config.model_type} model, and {needed}")
    return config


def load_encoder_config(source: HuggingFaceModel) -> Any:
    """The configuration of an encoder, of a tower alone where the checkpoint has one for texts too.

    Raises:
        UserError: if it is not available, of no family of `ENCODERS`, or of a kind that the family's entry excludes.
    """
    families = one_of(family.name for family in ENCODERS.values())
    needed = f"a {families} that takes pictures of one size is needed here"
    config = load_config(source, [*ENCODERS, *JOINT], needed)
    return checked_encoder(config.vision_config if config.model_type in JOINT else config, source)


def checked_encoder(config: Any, source: HuggingFaceModel) -> Any:
    """The same configuration, without what captions don't need."""
    family = ENCODERS[config.model_type]
    for key, value in {"num_channels": 3, **family.needs}.items():
        if (found := getattr(config, key, value)) != value:
            raise UserError(
                f"{source} is a {family.name} with {key}={found}, and {key}={value} is needed; name another encoder"
            )
    config.update(family.config)
    return config


def load_weights(
    kind: type[PreTrainedModel],
    source: HuggingFaceModel,
    config: PreTrainedConfig,
    may_be_new: Callable[[str], bool] = lambda _: False,
    **arguments: Any,
) -> Any:
    """A model of class `kind`, made with `arguments`, with the weights of a checkpoint.

    Every weight of the model comes from the checkpoint or satisfies `may_be_new`; weights that the checkpoint has
    beyond the model's (such as a classifier) are logged. They are read from safetensors; if the source allows it
    from PyTorch's own files too, but as data: what would run code is refused. Code that comes with a model never runs.

    Raises:
        UserError: if they are not available, lack a weight, or hold one of another shape.
    """
    try:
        with _quiet():  # its load report says in a table what we check and log in a line
            loaded: Any = kind.from_pretrained(
                source.name,
                config=config,
                dtype=torch.float32,  # also of half-precision files: trainer.precision says how to compute
                ignore_mismatched_sizes=True,  # reported in info, for one message on all that is wrong
                output_loading_info=True,
                local_files_only=out_of_reach(),
                use_safetensors=None if source.allow_pickle else True,
                weights_only=True,
                **arguments,
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{source} holds a pickle with more than weights in it; it was not loaded, since that could run code. "
            "Name another checkpoint"
        ) from error
    except (OSError, SafetensorError) as error:
        if not source.allow_pickle and _lacks_safetensors(source.name):
            raise UserError(
                f"{source} has no model.safetensors; weights in pickles (pytorch_model*.bin) are "
                "read with allow_pickle=true alone, as data: code in them does not run even so"
            ) from error
        raise _unavailable(source, "model.safetensors") from error
    model, info = loaded
    new = sorted(info["missing_keys"])
    lacking = [f"{weight} is missing" for weight in new if not may_be_new(weight)]
    misfits = [f"{weight} is {tuple(has)}, not {tuple(needs)}" for weight, has, needs in info["mismatched_keys"]]
    if wrong := lacking + sorted(misfits):
        raise UserError(
            f"{source} does not hold the weights that its config.json promises ({len(wrong)} are wrong: "
            f"{'; '.join(wrong[:3])}); name an undamaged checkpoint in {source.key}"
        )
    log.info("%s: loaded %s", source.key, source.name)
    # Early GPT-2s were saved with the number that a mask is made of.
    if unused := sorted(name for name in info["unexpected_keys"] if not name.endswith(".masked_bias")):
        log.info("%s: not used from %s: %s", source.key, source.name, ", ".join(layers_together(unused)))
    return model


def layers_together(names: Iterable[str]) -> list[str]:
    """Weights' names, those of all layers as one: `h.0.ln.bias`, `h.1.ln.bias` -> `h.*.ln.bias (2 layers)`."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{name} ({count} layers)" if "*" in name else name for name, count in counts.items()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside it transformers logs errors alone."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _lacks_safetensors(name: str) -> bool:
    """Whether it is a folder without a file of safetensors but with one of PyTorch's own, or several."""
    kinds = {file.suffix for file in weight_files(Path(name))}
    return ".bin" in kinds and ".safetensors" not in kinds


def load_picture_format(source: HuggingFaceModel, config: Any) -> PictureFormat:
    """How the checkpoint's own processor prepares pictures, at the size that its encoder takes.

    A picture of an odd shape is prepared by both, the processor and ours.

    Raises:
        UserError: if the checkpoint has no `preprocessor_config.json`, or one that gives other pixels than ours.
    """
    try:
        with _quiet():  # it says where a processor comes without Pillow
            processor = AutoImageProcessor.from_pretrained(
                source.name, local_files_only=out_of_reach(), trust_remote_code=False, backend="pil"
            )
    except OSError as error:
        raise _unavailable(source, "preprocessor_config.json") from error
    except ValueError as error:
        raise UserError(
            f"{source} has no image processor that transformers knows; name one of its as "
            "image_processor_type in its preprocessor_config.json"
        ) from error
    way_out = "correct its preprocessor_config.json, of a local copy if it is on the hub"
    try:
        found = picture_format_of(processor)
    except ValueError as error:
        what = type(processor).__name__.removesuffix("Pil")
        raise UserError(f"{source} has a {what} with {error}, which is not taken here; {way_out}") from error
    if difference := _difference(processor, found):
        raise UserError(f"{source}: {difference}; {way_out}")
    if ENCODERS[config.model_type].sizes == "processed":
        return found
    takes = picture_size(config)
    if takes != found.size:
        log.info(
            "%s: its processor makes pictures of %d x %d pixels, its encoder takes %d x %d", source, *found.size, *takes
        )
    return resized(found, takes)


PROBE = 97, 61  # (width, height) in pixels


def _difference(processor: Any, picture_format: PictureFormat) -> str | None:
    """How a picture of the processor and the same one of ours differ, in words.

    Levels are of 255. Processors that don't work with Pillow resize in fractions of a level, without rounding: two
    levels are let pass there.
    """
    noise = np.random.default_rng(0).integers(0, 256, (PROBE[1], PROBE[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    name, of = type(processor).__name__.removesuffix("Pil"), f"of a picture of {PROBE[0]} x {PROBE[1]} pixels"
    try:
        theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    except Exception as error:  # whatever the library's code makes of such settings
        return f"its {name} fails: {' '.join(str(error).split())}"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (picture_format.mean, picture_format.std))
    ours = (EvaluationTransform(picture_format)(image) / 255 - mean) / std
    made = f"its {name} makes {tuple(theirs.shape)} {of} and ours {tuple(ours.shape)}"
    if theirs.shape != ours.shape:
        return made
    levels = ((theirs - ours) * std * 255).abs()
    allowed = 0.01 if isinstance(processor, PilBackend) else 2
    if bool((levels > allowed).any()):
        off = int((levels > allowed).any(0).sum())
        return f"{made}, of which {off} pixels differ by up to {levels.max():.0f} levels of 255"
    return None


def _unavailable(source: HuggingFaceModel, file: str) -> UserError:
    name, key = Path(source.name), source.key
    if name.is_dir():
        damaged = ", which is damaged or cut short" if (name / file).is_file() else ""
        return UserError(f"{source} is a folder without a readable {file}{damaged}; set {key} to one that has it")
    files = "config.json, model.safetensors" + (" and preprocessor_config.json" if key != "model.decoder" else "")
    tiny = ", or take model=tiny, which needs no weights" if key in ("model.encoder", "model.decoder") else ""
    return UserError(
        f"{source} could not be fetched from the Hugging Face hub and is not in its local cache; "
        f"check the name and the network, or set {key} to a local folder that holds {files}{tiny}"
    )


def quick_activation(config: GPT2Config) -> None:
    """Let a GPT-2 compute its activation in one kernel, not eight: the same function under another name."""
    if config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"


TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")

# A checkpoint's generation settings: what `decoding` decides instead, and what changes no caption. All others do.
LIMITS = ("max_length", "max_new_tokens")
OVERRULED = (
    *(*LIMITS, "min_length", "min_new_tokens", "num_beams", "early_stopping", "length_penalty"),
    *("no_repeat_ngram_size", "repetition_penalty", "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "dola_layers", "num_beam_groups"),
    *("diversity_penalty", "num_return_sequences"),
)
HARMLESS = re.compile(
    r"_.*|transformers_version|(decoder_start|bos|eos|pad)_token_id|.*cache.*|output_.*|return_dict_in_generate|.*compile.*"
    r"|.*assistant.*|prompt_lookup_.*|max_matching_.*|.*lookbehind|.*speculat.*|use_mtp|prefill_.*|low_memory"
    r"|continuous_batching_config|remove_invalid_values|max_time"
)


def own_generation(generation: GenerationConfig) -> dict[str, Any]:
    """The settings that are not transformers' defaults and can change a caption; special tokens are none of them."""
    defaults = {**vars(GenerationConfig()), **GenerationConfig._get_default_generation_params()}
    return {
        key: value
        for key, value in vars(generation).items()
        if not HARMLESS.fullmatch(key) and value not in (None, [], {}) and value != defaults.get(key)
    }


def load_model(source: HuggingFaceModel) -> ImageCaptioner:
    """The captioner, in eval mode, of a `VisionEncoderDecoderModel` with its own picture format and special tokens.

    BOS, from which captions start, and EOS are those that its `generate` would use, and become its decoder's.

    Raises:
        UserError: if weights, configuration or processor are not available, don't fit, or name no BOS or EOS.
    """
    config = load_config(source, [VisionEncoderDecoderConfig.model_type], "a VisionEncoderDecoderModel is needed")
    family = ENCODERS[checked_encoder(config.encoder, source).model_type]
    quick_activation(config.decoder)
    network = load_weights(
        VisionEncoderDecoderModel,
        source,
        config,
        may_be_new=lambda weight: family.is_spare(weight.removeprefix("encoder.")),
    )
    family.without_spare(network.encoder)
    _take_special_tokens(network, source)
    picture_format = load_picture_format(source, network.config.encoder)
    return captioner_of(of_size(network, picture_format.size), picture_format).eval()


def _take_special_tokens(network: VisionEncoderDecoderModel, source: HuggingFaceModel) -> None:
    config: Any = network.config
    generation: Any = network.generation_config
    start = generation.decoder_start_token_id
    found = {
        "decoder_start_token_id": generation.bos_token_id if start is None else start,
        "eos_token_id": generation.eos_token_id,
    }
    bos, eos = (_one_token(token, what, source) for what, token in found.items())
    pad = generation.pad_token_id
    for part in (config, config.decoder, generation):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = bos, eos, eos if pad is None else pad
    config.decoder_start_token_id = generation.decoder_start_token_id = bos
    _say_what_decides(generation, source)


def _say_what_decides(generation: GenerationConfig, source: HuggingFaceModel) -> None:
    """Name the settings that captions here do not follow; UserError where that leaves no way to the model's own."""
    own = own_generation(generation)
    enough = GenerationConfig._get_default_generation_params()["max_length"]
    overruled = {k: v for k, v in own.items() if k in OVERRULED and not (k in LIMITS and v >= enough)}
    if overruled:
        log.info("%s: decoding=... decides, not its own %s", source.key, _listed(overruled))
    ignored = {key: value for key, value in own.items() if key not in OVERRULED}
    if ignored and source.key == "checkpoint":
        raise UserError(
            f"{source} has {_listed(ignored)} in its generation settings, which are not obeyed here, so captions would "
            "not be those of transformers; take them out of its generation_config.json (and config.json), of a "
            "local copy if it is on the hub, or caption with transformers"
        )
    if ignored and source.key == "model.init_from":
        log.warning("%s: not used of its generation settings: %s", source.key, _listed(ignored))


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _one_token(token: int | list[int] | None, what: str, source: HuggingFaceModel) -> int:
    among = sorted(set(token)) if isinstance(token, list) else [token]
    if among == [None]:
        raise UserError(f"{source} names no {what} in its generation_config.json or config.json; add it there")
    if len(among) != 1 or among[0] is None:
        raise UserError(
            f"{source} has {what}={token}; captions have one beginning and one end, so leave one number in its "
            "generation_config.json"
        )
    return among[0]


def save_model(captioner: ImageCaptioner, folder: Path, generation: dict[str, Any]) -> None:
    """Write weights (safetensors), configuration, generation settings and image processor, for transformers to load.

    `generation` holds keys of transformers' `GenerationConfig`; BOS, EOS and padding are the captioner's own.
    """
    network = _with_spare_module(captioner)
    config: Any = captioner.network.config
    bos, eos, pad = config.decoder.bos_token_id, config.decoder.eos_token_id, config.pad_token_id
    network.generation_config = GenerationConfig(
        decoder_start_token_id=bos, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, **generation
    )
    network.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors gives the file to its owner alone
        file.chmod(file.stat().st_mode | (folder / "config.json").stat().st_mode)
    processor_of(captioner.picture_format).save_pretrained(folder)


def _with_spare_module(captioner: ImageCaptioner) -> VisionEncoderDecoderModel:
    """The network with the module that transformers would otherwise miss, of zeros: its output goes nowhere."""
    config: Any = captioner.network.config
    family, network = family_of(captioner.network.encoder), compose(config.encoder, config.decoder)
    whole = family.model(config.encoder)
    for name in family.spare:
        (owner, leaf), (lacking, _) = owner_of(whole, name), owner_of(network.encoder, name)
        spare = getattr(owner, leaf)
        for weight in [spare] if isinstance(spare, nn.Parameter) else spare.parameters():
            nn.init.zeros_(weight)
        setattr(lacking, leaf, spare)
    network.load_state_dict(captioner.network.state_dict(), strict=False)
    return network.eval()


def compose(encoder_config: Any, decoder_config: GPT2Config) -> VisionEncoderDecoderModel:
    """A `VisionEncoderDecoderModel` of this architecture with random weights."""
    family = ENCODERS[encoder_config.model_type]
    return joined(family.made(encoder_config), GPT2LMHeadModel(decoder_config))


def of_size(network: VisionEncoderDecoderModel, size: tuple[int, int]) -> VisionEncoderDecoderModel:
    """The same network for pictures of another (height, width), or itself.

    Raises:
        UserError: for a size that its encoder does not take.
    """
    encoder: Any = network.encoder
    if size == picture_size(encoder.config):
        return network
    changed = family_of(encoder).weights_for(encoder, size)
    config = copy.deepcopy(encoder.config)
    config.image_size = size[0] if size[0] == size[1] else list(size)
    decoder: Any = network.decoder.config
    again = compose(config, copy.deepcopy(decoder))
    again.load_state_dict(network.state_dict() | {f"encoder.{name}": weight for name, weight in changed.items()})
    again.config.update({name: getattr(network.config, name) for name in TOKENS})
    again.generation_config = network.generation_config
    return again


def joined(encoder: PreTrainedModel, decoder: GPT2LMHeadModel) -> VisionEncoderDecoderModel:
    """Both halves as one `VisionEncoderDecoderModel`, with the token ids that its `generate` reads."""
    network = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    config = decoder.config
    for part in (network.config, network.generation_config):
        part.decoder_start_token_id = config.bos_token_id
        part.bos_token_id = config.bos_token_id
        part.eos_token_id = config.eos_token_id
        # unused by us; generate() fills finished captions with it
        part.pad_token_id = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    return network


def captioner_of(network: VisionEncoderDecoderModel, picture_format: PictureFormat) -> ImageCaptioner:
    """The captioner of a network of transformers, whose layers compute from now on as in cpu.py."""
    use_fast_layers(network)
    cast_norms_once(network)
    return ImageCaptioner(network, picture_format)
