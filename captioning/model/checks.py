"""What `conf/model` may not say, refused in a sentence that names the key and the value met."""

from captioning.errors import UserError, require_whole


def check_sizes(**sizes: object) -> None:
    """Pixels, tokens, widths, layers and heads: whole numbers of at least 1."""
    for name, value in sizes.items():
        require_whole(f"model.{name}", value)


def check_multiples(**sizes: tuple[int, str, int]) -> None:
    """`name=(value, of, part)`: the value is a multiple of model.`of`, which is `part`."""
    for name, (value, of, part) in sizes.items():
        if value % part:
            raise UserError(f"model.{name}={value} must be a multiple of model.{of}={part}")


def check_positive(**values: object) -> None:
    """Standard deviations, of weights or pixels."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not value > 0:
            raise UserError(f"model.{name}={value} must be a number above 0")


def check_dropouts(**values: object) -> None:
    """Probabilities of being dropped."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise UserError(f"model.{name}={value} must be a number from 0, which switches it off, to below 1")
