"""A user's mistake, told apart from a bug of ours."""


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message is one clear sentence that holds the value met and the way out; `train.py` and `predict.py` print it
    without a stack trace and exit with a non-zero status.
    """
