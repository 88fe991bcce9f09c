"""Weights that were found to a captioner ready to generate."""

from pathlib import Path

from captioning.checkpoint import read_checkpoint
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.model.build import from_description
from captioning.model.captioner import ImageCaptioner
from captioning.model.interchange import load_model
from captioning.weights import HuggingFaceModel

WEIGHTS = "captioner."  # the captioner's name in the LightningModule, and so in its state dict


def load_captioner(weights: Path | HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    """The captioner, in eval mode on the CPU, and its tokenizer, from what `find_weights` found.

    Raises:
        UserError: if the file is not one of ours, or transformers' model is not whole.
    """
    if isinstance(weights, HuggingFaceModel):
        return _of_transformers(weights)
    contents = read_checkpoint(weights)
    try:
        captioner = from_description(contents["captioner"]["description"])
        tokenizer = CaptionTokenizer.from_json(contents["captioner"]["tokenizer"])
    except Exception as error:  # of a damaged tokenizer the library raises a bare Exception
        raise UserError(f"checkpoint {weights} describes no captioner; give one that train.py wrote") from error
    state = {k.removeprefix(WEIGHTS): v for k, v in contents["state_dict"].items() if k.startswith(WEIGHTS)}
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {weights} holds weights that do not fit its own description of the model"
        ) from error
    return captioner.eval(), tokenizer


def _of_transformers(weights: HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    name, key = weights.name, weights.key
    captioner = load_model(name, key, weights.allow_pickle)
    decoder = captioner.network.decoder.config
    tokenizer = CaptionTokenizer.of_model(
        name, key, bos_token_id=decoder.bos_token_id, eos_token_id=decoder.eos_token_id
    )
    if tokenizer.vocab_size > captioner.vocab_size:
        raise UserError(
            f"{key}={name} has a tokenizer of {tokenizer.vocab_size} tokens and a decoder of {captioner.vocab_size}; "
            "put the decoder's own tokenizer there"
        )
    return captioner, tokenizer
