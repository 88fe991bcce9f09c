"""What decodings refuse, in a sentence with the value met and a way out."""

import math

from captioning import errors
from captioning.errors import UserError


def require_whole(name: str, value: object, least: int = 1) -> None:
    """Raise UserError unless `decoding.<name>` is a whole number of at least `least`."""
    errors.require_whole(f"decoding.{name}", value, least)


def require_finite(name: str, value: object) -> None:
    """Raise UserError unless `decoding.<name>` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"decoding.{name}={value} must be a finite number, such as 1.0")
