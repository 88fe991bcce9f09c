"""A split as batches: its captions as flat arrays, rows of a picture and its captions, an epoch's order, the loader.

Everything drawn is a function of (seed, epoch, image id), so a run that resumes in mid-epoch needs to know only how
many batches were done.

Captions are tokenised once, into flat arrays in shared memory. A list of lists of Python integers would be copied into
every loader worker as reference counts touch its pages; arrays are not: workers, forked or spawned, read the same
memory. COCO's 591,753 training captions take about 22 MB: 13.86 tokens each on average (measured on the 25,014 of its
validation part), BOS and EOS included, at two bytes, with an 8-byte offset each, and one for each of the 118,287
pictures.
"""

import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from captioning.data.batch import Row, pack
from captioning.data.records import DamagedPicture, Neighbours, Split, Texts
from captioning.data.tokenizer import CaptionTokenizer
from captioning.data.transforms import EvaluationTransform, TrainingTransform
from captioning.progress import progress
from captioning.randomness import addressed_seed

log = logging.getLogger(__name__)

CAPTIONS_AT_ONCE = 50_000  # bounds the Python objects alive while COCO is tokenised

SIDES = re.compile(
    r"\b(?:top|bottom|upper|lower|far)?(?:left|right)(?:most|wards?|side|y|(?:-?hand(?:ed|er)?))?\b", re.IGNORECASE
)

Made = TypeVar("Made")


class TokenArrays:
    """The captions of N pictures: `captions_of(i)` gives picture i's, each an int array from BOS to EOS."""

    def __init__(self, tokens: np.ndarray, caption_starts: np.ndarray, picture_starts: np.ndarray):
        # torch tensors in shared memory travel to spawned workers as handles; numpy views of them index faster.
        self._tokens, self._caption_starts, self._picture_starts = map(
            _shared, (tokens, caption_starts, picture_starts)
        )

    @classmethod
    def encode(
        cls, captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer, max_tokens: int, name: str = ""
    ) -> "TokenArrays":
        """Tokenise each picture's captions.

        A caption of more than `max_tokens` targets (its tokens and EOS) is cut there, without an EOS, so that the
        model never learns to stop in mid-sentence; how many were cut is one warning.
        """
        flat = chain.from_iterable(captions)
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        pieces: list[np.ndarray] = []
        lengths: list[int] = []
        cut = 0
        total = sum(map(len, captions))
        with progress(total, "turning into tokens", "captions", leave=False, delay=2) as bar:
            while some := list(islice(flat, CAPTIONS_AT_ONCE)):
                encoded = tokenizer.encode(some)
                cut += sum(len(ids) - 1 > max_tokens for ids in encoded)
                bar.update(len(encoded))
                encoded = [ids[: max_tokens + 1] for ids in encoded]
                pieces.append(np.fromiter((token for ids in encoded for token in ids), dtype=dtype))
                lengths.extend(len(ids) for ids in encoded)
        if cut:
            log.warning(
                "%d of %d %s captions are longer than data.max_tokens=%d and were cut",
                cut, len(lengths), name, max_tokens,
            )  # fmt: skip
        return cls(
            np.concatenate(pieces) if pieces else np.empty(0, dtype),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([[0], np.cumsum([len(of_picture) for of_picture in captions])]).astype(np.int64),
        )

    def captions_of(self, picture: int) -> list[np.ndarray]:
        """Picture `picture`'s captions, each (tokens + 2,) from BOS to EOS."""
        tokens = self._tokens.numpy()
        first, last = self._picture_starts.numpy()[picture : picture + 2]
        return [tokens[a:b] for a, b in pairwise(self._caption_starts.numpy()[first : last + 1])]

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """(V,) how often each token is a target: each of a caption's but BOS."""
        tokens, starts = self._tokens.numpy(), self._caption_starts.numpy()[:-1]
        return np.bincount(tokens, minlength=vocab_size) - np.bincount(tokens[starts], minlength=vocab_size)

    def captions_per_picture(self) -> np.ndarray:
        """(N,) how many captions each picture has."""
        return np.diff(self._picture_starts.numpy())

    @property
    def longest(self) -> int:
        """Targets of the longest caption: its tokens and EOS."""
        return int(np.diff(self._caption_starts.numpy()).max(initial=1)) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all workers share."""
        return sum(array.nbytes for array in (self._tokens, self._caption_starts, self._picture_starts))

    def __len__(self) -> int:
        return len(self._picture_starts) - 1


def _shared(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).share_memory_()


def captions_mention_sides(captions: Sequence[str]) -> bool:
    """Whether a mirrored picture could make one of the captions false, because it says left or right.

    >>> captions_mention_sides(["A dog", "the Left-hand door"]), captions_mention_sides(["bright copyright"])
    (True, False)
    """
    return any(SIDES.search(caption) for caption in captions)


class CaptionRows(Dataset[Row]):
    """Rows of at most K captions and their picture; every caption of every picture is in exactly one row an epoch.

    A picture with n captions gives ceil(n / K) rows of near-equal length: with K = 5 nearly always one, with K = 1
    the classic one-caption rows. Which captions share a row is drawn anew each epoch. An index is (epoch, row):
    workers outlive epochs, and learn from it which one it is.
    """

    def __init__(
        self,
        split: Split,
        tokens: TokenArrays,
        captions_per_image: int,
        seed: int,
        transform: EvaluationTransform,
        augmentation: TrainingTransform | None = None,
        encoded: Callable[[int], Tensor] | None = None,  # picture i as (P, D); then no pixels are read
    ):
        self._load = split.load
        ids = split.image_ids
        self._image_ids = ids if isinstance(ids, Texts) else np.asarray(ids)  # an array, as captions are
        self._mentions_sides = np.array([captions_mention_sides(captions) for captions in split.captions])
        self._neighbours = split.neighbours
        self._tokens = tokens
        self._transform, self._augmentation, self._encoded = transform, augmentation, encoded
        self._seed, self._skips_damaged = seed, split.skips_damaged
        rows_of_picture = -(-tokens.captions_per_picture() // captions_per_image)
        self._picture_of_row = np.repeat(np.arange(len(split)), rows_of_picture)
        self._first_row = np.concatenate([[0], np.cumsum(rows_of_picture)])

    def __len__(self) -> int:
        return len(self._picture_of_row)

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[Row]:
        """The rows of a batch; where damaged pictures are skipped, those of the others."""
        return list(self._undamaged(self.__getitem__, indices).values())

    def __getitem__(self, index: tuple[int, int]) -> Row:
        epoch, row = index
        picture = int(self._picture_of_row[row])
        image_id = self._image_ids[picture]
        image_id = image_id.item() if isinstance(image_id, np.generic) else image_id
        captions = self._tokens.captions_of(picture)
        seed = addressed_seed(self._seed, epoch, image_id)
        rows = int(self._first_row[picture + 1] - self._first_row[picture])
        part = row - int(self._first_row[picture])  # which of the picture's rows
        order = np.arange(len(captions))
        if rows > 1:
            order = np.random.default_rng(seed).permutation(order)
        mine = [captions[i] for i in np.array_split(order, rows)[part]]
        if self._encoded is not None:
            return Row(image_id, None, mine, self._encoded(picture))
        pixels = self._pixels(picture) if self._augmentation is None else self._augmented(picture, seed, part)
        return Row(image_id, pixels, mine)

    @property
    def neighbours(self) -> Neighbours | None:
        """The split's, of rows."""
        near = self._neighbours
        return near and replace(near, run_of=near.run_of[self._picture_of_row])

    def pixels_of(self, pictures: Sequence[int]) -> dict[int, Tensor]:
        """Pictures by their numbers as the model sees them in evaluation, (3, H, W) uint8."""
        return self._undamaged(self._pixels, pictures)

    def _pixels(self, picture: int) -> Tensor:
        return self._transform(self._load(picture))

    def _undamaged(self, make: Callable[[Any], Made], numbers: Sequence[Any]) -> dict[Any, Made]:
        """What is made of each number; where damaged pictures are skipped, a warning instead, but never of all."""
        made: dict[Any, Made] = {}
        damaged = None
        for number in numbers:
            try:
                made[number] = make(number)
            except DamagedPicture as error:
                if not self._skips_damaged:
                    raise
                log.warning("%s; it is left out here", error)
                damaged = error
        if damaged and not made:
            raise DamagedPicture(f"of {len(numbers)} pictures none is left: {damaged}") from damaged
        return made

    def _augmented(self, picture: int, seed: int, part: int) -> Tensor:
        assert self._augmentation is not None
        generator = torch.Generator().manual_seed(addressed_seed(seed, part))
        return self._augmentation(self._load(picture), generator, may_flip=not self._mentions_sides[picture])


def spread(count: int, total: int) -> list[int]:
    """Up to `count` of the numbers from 0 to `total` - 1, evenly apart.

    >>> spread(3, 10), spread(5, 2)
    ([0, 3, 6], [0, 1])
    """
    return sorted({i * total // count for i in range(count)})


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, row) for one rank; the order is a function of (seed, epoch), the same on every rank.

    Each global batch of `batch_size * world_size` rows is dealt out to the ranks in turn, so that n ranks see
    together what one process with n times the batch would see. In training, the ranks' batches are equally many: a
    last global batch too small to give every rank a row is left out.

    Where rows have neighbours, an epoch's runs are drawn in an order, and rows are shuffled within each `at_once` runs.
    Where that is all of them, the order is that of rows without neighbours. With `lanes`, place p of the order is of
    lane p % lanes, and a rank whose places leave all the same remainder reads that lane alone; the order itself does
    not depend on how many ranks there are. Only a run on the border of two lanes is in both.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        neighbours: Neighbours | None = None,
    ):
        self._rows, self._batch_size, self._shuffle, self._seed = rows, batch_size, shuffle, seed
        self._rank, self._world_size, self._neighbours = rank, world_size, neighbours
        self._epoch = 0
        self._start, self._by = 0, neighbours  # of the next iteration, and what it goes by
        self.sampler = self  # Lightning looks for `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    @property
    def plan(self) -> dict[str, int]:
        """What beside seed and epoch the present order depends on."""
        return {} if self._by is None else {"at_once": self._by.at_once, "lanes": self._by.lanes}

    def go_on(self, batches: int, **plan: Any) -> None:
        """Let iterations pass over so many batches of an epoch with this plan; an empty one is the usual."""
        self._start = batches
        self._by = self._neighbours and replace(self._neighbours, **plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, near = torch.arange(self._rows), self._by
        if self._shuffle:
            generator = torch.Generator().manual_seed(addressed_seed(self._seed, "order", self._epoch))
            order = torch.randperm(self._rows, generator=generator)
            order = order if near is None else _kept_near(order, near, generator)
        order = order if near is None else _in_turn(order, near.lanes)
        for number in range(self._start, len(self)):
            start = number * self._batch_size * self._world_size
            together = order[start : start + self._batch_size * self._world_size]
            yield [(self._epoch, int(row)) for row in together[self._rank :: self._world_size]]

    def __len__(self) -> int:
        together = self._batch_size * self._world_size
        full, rest = divmod(self._rows, together)
        enough = self._world_size if self._shuffle else self._rank + 1
        return full + (rest >= enough)


def _kept_near(order: Tensor, near: Neighbours, generator: torch.Generator) -> Tensor:
    """The rows in this order within each window of runs, one window after the other, and one lane after the other."""
    run_of = torch.from_numpy(np.unique(near.run_of, return_inverse=True)[1])
    places = torch.randperm(int(run_of.max()) + 1, generator=generator)[run_of[order]]  # of each row's run in the epoch
    by_place = torch.argsort(places, stable=True)
    starts, sizes = _lanes(len(order), near.lanes)
    lane_of = torch.empty_like(order)
    lane_of[by_place] = torch.repeat_interleave(sizes)
    firsts = places[by_place[starts.clamp(max=len(order) - 1)]]
    windows = (places - firsts[lane_of]) // max(1, near.at_once // near.lanes)
    return order[torch.argsort(lane_of * len(order) + windows, stable=True)]


def _in_turn(order: Tensor, lanes: int) -> Tensor:
    """A row of the first lane, one of the second, ..., the second row of the first lane, ...."""
    places = torch.arange(len(order))
    return order[_lanes(len(order), lanes)[0][places % lanes] + places // lanes]


def _lanes(rows: int, lanes: int) -> tuple[Tensor, Tensor]:
    """(lanes,) where each begins among so many rows, and its length; the first ones are one row longer."""
    sizes = torch.full((lanes,), rows // lanes) + (torch.arange(lanes) < rows % lanes)
    return sizes.cumsum(0) - sizes, sizes


class RowLoader(DataLoader[Row]):
    """A loader that can go on in the middle of an epoch.

    Lightning stores its state in a checkpoint and gives it back to a run that resumes in mid-epoch: how many batches
    were given. They are passed over without being loaded, since the order is a function of the epoch. An epoch ends by
    the plan that it began with, though the cache or the number of machines is another now.
    """

    _given = 0  # batches of the present epoch
    _before: dict[str, int] | None = None  # where the next iteration goes on

    def state_dict(self) -> dict[str, int]:
        plan = self.batch_sampler.plan if isinstance(self.batch_sampler, EpochBatches) else {}
        return {"batches": self._given, **plan}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration, and no later one, start behind so many batches."""
        self._before = state_dict

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own iterator, from the first batch on
        before, self._before = self._before or {"batches": 0}, None
        self._given = before["batches"]
        if isinstance(self.batch_sampler, EpochBatches):
            self.batch_sampler.go_on(**before)
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        # Workers begin to load at the first batch that is asked for: then it is known which epoch it is.
        for batch in super().__iter__():
            self._given += 1
            yield batch


def row_loader(
    rows: CaptionRows,
    batches: Iterable[list[tuple[int, int]]],
    num_workers: int,
    *,
    persistent: bool,
    pin_memory: bool = False,
    multiple: int = 1,
) -> RowLoader:
    """Packed batches of rows; workers that are persistent live on to the next epoch.

    Args:
        rows: of a split.
        batches: which of them together.
        num_workers: 0 loads in this process.
        persistent: whether they outlive an epoch.
        pin_memory: for a GPU, beside which each worker has twice as many batches ready.
        multiple: of the packed length, see `pack`.
    """
    return RowLoader(
        rows,
        batch_sampler=batches,
        collate_fn=partial(pack, multiple=multiple),
        worker_init_fn=_apart_from_signals,
        num_workers=num_workers,
        persistent_workers=persistent and num_workers > 0,
        prefetch_factor=None if num_workers == 0 else 4 if pin_memory else 2,
        pin_memory=pin_memory,
    )


def _apart_from_signals(worker: int) -> None:
    """Ctrl-C or a scheduler's signal to the whole group is for the training process, which ends its workers itself."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
