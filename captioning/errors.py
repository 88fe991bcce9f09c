"""A user's mistake, which is no bug of ours; and a wish to stop."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one clear sentence that holds the value met and the way out; `train.py` and `predict.py` print it
    without a stack trace and exit with a non-zero status.
    """


@contextmanager
def writing(what: object, way_out: str) -> Iterator[None]:
    """What the disk objects to while `what` is written, as a UserError that ends with the way out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} can't be written: {error.strerror or error}; {way_out}") from error


class Stopped(SystemExit):
    """A run ended because a signal asked it to, after it was saved.

    Args:
        status: for the shell, 128 and the signal's number.
        words: the signal's name; for a person, with how to go on.
    """

    def __init__(self, status: int, words: str):
        super().__init__(status)
        self.words = words
