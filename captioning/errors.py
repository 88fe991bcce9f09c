"""A user's mistake, told apart from a bug of ours; and the commonest one, a number that is none."""


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one clear sentence that holds the value met and the way out; `train.py` and `predict.py` print it
    without a stack trace and exit with a non-zero status.
    """


def require_whole(key: str, value: object, least: int = 1) -> None:
    """Raise UserError unless the value of `key` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={value} must be a whole number of at least {least}")
