"""A checkpoint file to a captioner ready to generate."""

from pathlib import Path

from captioning.checkpoint import read_checkpoint
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.model.build import from_description
from captioning.model.captioner import ImageCaptioner

WEIGHTS = "captioner."  # the captioner's name in the LightningModule, and so in its state dict


def load_captioner(path: Path) -> tuple[ImageCaptioner, CaptionTokenizer]:
    """The captioner, in eval mode on the CPU, and its tokenizer, from a `.ckpt` file of `train.py`.

    Raises:
        UserError: if the file is not one of ours.
    """
    contents = read_checkpoint(path)
    try:
        captioner = from_description(contents["captioner"]["description"])
        tokenizer = CaptionTokenizer.from_json(contents["captioner"]["tokenizer"])
    except Exception as error:  # of a damaged tokenizer the library raises a bare Exception
        raise UserError(f"checkpoint {path} describes no captioner; give one that train.py wrote") from error
    weights = {k.removeprefix(WEIGHTS): v for k, v in contents["state_dict"].items() if k.startswith(WEIGHTS)}
    try:
        captioner.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} holds weights that do not fit its own description of the model") from error
    return captioner.eval(), tokenizer
