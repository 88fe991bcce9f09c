"""Randomness is addressed, not consumed: what is drawn depends on names such as (seed, epoch, image id) alone.

So the order of an epoch, the augmentation of a picture and the choice of its captions are the same however many
workers there are, and a run that resumes in mid-epoch needs only the number of batches done.
"""

import hashlib


def addressed_seed(*address: int | str) -> int:
    """A 63-bit seed for this address; the same on every machine, and unrelated for different addresses."""
    names = tuple(part if isinstance(part, str) else int(part) for part in address)  # NumPy's 7 is 7
    digest = hashlib.blake2b(ascii(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
