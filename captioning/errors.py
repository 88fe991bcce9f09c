"""A user's mistake, told apart from a bug of ours; the commonest one, a number that is none; and a wish to stop."""


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one clear sentence that holds the value met and the way out; `train.py` and `predict.py` print it
    without a stack trace and exit with a non-zero status.
    """


class Stopped(SystemExit):
    """A run ended because a signal asked it to, after it was saved.

    Args:
        status: for the shell, 128 and the signal's number.
        words: the signal's name; for a person, with how to go on.
    """

    def __init__(self, status: int, words: str):
        super().__init__(status)
        self.words = words


def require_whole(key: str, value: object, least: int = 1) -> None:
    """Raise UserError unless the value of `key` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key}={value} must be a whole number of at least {least}")
