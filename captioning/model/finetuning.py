"""A captioner that was trained before, made ready to be trained on."""

from typing import Any

from captioning.model.build import from_description
from captioning.model.captioner import ImageCaptioner
from captioning.model.checks import check_dropouts, check_sizes
from captioning.model.pretrained import interpolate_positions, picture_size, resized
from captioning.model.switches import switched


def fine_tuned(
    captioner: ImageCaptioner,
    *,
    image_size: int | None,
    dropout: float,
    attention_dropout: float,
    gradient_checkpointing: bool,
    compile: bool,
) -> ImageCaptioner:
    """The same architecture and weights, in training mode, with these dropouts and switches.

    Args:
        captioner: whose weights these are; it is left as it was.
        image_size: pixels; other than the captioner's, its position embeddings are interpolated. None keeps it.
        dropout, attention_dropout, gradient_checkpointing, compile: as in `build.from_pretrained`.

    Raises:
        UserError: for an image size that patches do not tile, or a dropout that is no probability.
    """
    check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
    if image_size is not None:
        check_sizes(image_size=image_size)
    description = captioner.description()
    description["network"]["decoder"] |= {
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "attn_pdrop": attention_dropout,
    }
    trained = from_description(description)
    trained.load_state_dict(captioner.state_dict())
    encoder: Any = trained.network.encoder
    if image_size is not None and (image_size, image_size) != picture_size(encoder.config):
        interpolate_positions(encoder, image_size)
        trained.picture_format = resized(trained.picture_format, picture_size(encoder.config))
    return switched(trained, gradient_checkpointing, compile)
