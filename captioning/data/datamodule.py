"""Data sets as LightningDataModules: splits of captioned pictures in, packed batches out.

`CaptionDataModule` is what all have in common. A data set says in `read` which pictures and captions there are, and one
call of `connect` fits them to a model; `StoredDataModule` is for pictures that are stored, wherever that is. Of these
`PhotographDataModule` is `data=coco|flickr30k|flickr8k`, and `FolderDataModule` `data=folder`: photographs in files.
"""

import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from itertools import chain, islice
from math import ceil, gcd
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.data.arrow import HubPictures, hub_index, hub_splits
from captioning.data.batch import PictureFormat
from captioning.data.datasets import annotation_files, find_photographs
from captioning.data.encoder_cache import EncodedPictures, FrozenEncoder, encode_once
from captioning.data.images import UnreadablePicture, decode_picture
from captioning.data.index import Columns, Index, IndexedPictures, ids_of, refuse_shared, usable
from captioning.data.pixel_cache import Outcome, Places, find_prepared, packs_in, prepare_pictures
from captioning.data.readers.folder import OWN_KEYS, OwnFolder, read_folder
from captioning.data.records import DamagedPicture, Neighbours, Photograph, Pictures, Split, Texts
from captioning.data.remote import Blocks, is_remote
from captioning.data.rows import CaptionRows, EpochBatches, TokenArrays, row_loader, spread
from captioning.data.shards import ShardPictures, index_of, shard_names
from captioning.data.splits import (
    divided_by_seed,
    part_by_seed,
    refuse_empty,
    split_photographs,
    without_unreadable,
)
from captioning.data.stored import PictureFiles, StoredPictures
from captioning.data.tokenizer import CaptionTokenizer
from captioning.data.transforms import EvaluationTransform, TrainingTransform
from captioning.errors import UserError
from captioning.files import readable
from captioning.progress import progress

log = logging.getLogger(__name__)


class CaptionDataModule(L.LightningDataModule):
    """Splits in, packed batches out, once `connect` has said for which model; a subclass says in `read` what there is.

    Args:
        tokenizer: hub name or local folder of a GPT-2 tokenizer; None trains a small one on the training captions.
        batch_size: rows (pictures with their captions) a step and process.
        captions_per_image: at most so many captions share one row and one encoded picture; 1 gives classic rows.
        max_tokens: a longer caption (EOS counted) is cut, with a counted warning.
        num_workers: processes that load pictures; 0 loads in the training process.
        augmentation: `TrainingTransform`'s arguments.
        overfit_images: train and validate on the first so many photographs, one caption each, without augmentation.
        seed: of the order, the augmentation and the choice of captions.
    """

    TRAINED_VOCAB_SIZE = 4096  # at most: drawn shapes have 371, 753 photographs' captions as many as there may be

    tokenizer: CaptionTokenizer  # the model's, once there is a connection
    picture_format: PictureFormat  # how its encoder wants pictures
    training_pictures: Pictures | None = None  # those of `train`, perhaps smaller, to be cropped and jittered
    perplexity_floor: float | None = None  # the lowest on validation that any model can reach, where that is known

    def __init__(
        self,
        *,
        tokenizer: str | None,
        batch_size: int,
        captions_per_image: int,
        max_tokens: int,
        num_workers: int,
        augmentation: dict,
        overfit_images: int | None,
        seed: int,
    ):
        super().__init__()
        self._tokenizer_name = tokenizer
        self.batch_size = batch_size
        self._captions_per_image = captions_per_image
        self.max_tokens = max_tokens
        self._num_workers = num_workers
        self._augmentation = augmentation
        self._overfit_images = overfit_images
        self.seed = seed
        self.tokens: dict[str, TokenArrays] = {}
        self._encoded: dict[str, EncodedPictures] = {}

    @abstractmethod
    def read(self) -> dict[str, Split]:
        """The splits `train`, `val` and, where there is one, `test`; raises UserError where they cannot be read."""

    @cached_property
    def splits(self) -> dict[str, Split]:
        """What `read` gave, cut to a few pictures for `overfit_images`."""
        splits = self.read()
        if self._overfit_images is not None:
            few = splits["train"].first(self._overfit_images, captions=1)
            splits = {"train": few, "val": few}
        sizes = (f"{name} {len(s)} pictures, {sum(map(len, s.captions))} captions" for name, s in splits.items())
        log.info("%s", "; ".join(sizes))
        return splits

    def new_tokenizer(self) -> CaptionTokenizer:
        """The tokenizer of a model that has none yet: GPT-2's, or a small one learned from the training captions.

        Reads the data set, so that a mistake in it is met before any model is built.
        """
        captions = self.splits["train"].captions
        if self._tokenizer_name is not None:
            return CaptionTokenizer.from_pretrained(self._tokenizer_name)
        log.info("learning a tokenizer from the training captions")
        return CaptionTokenizer.train(chain.from_iterable(captions), self.TRAINED_VOCAB_SIZE)

    def connect(
        self,
        tokenizer: CaptionTokenizer,
        picture_format: PictureFormat,
        max_positions: int,
        only: str | None = None,
        packed_multiple: int = 1,
    ) -> None:
        """Fit captions and pictures to a model; from now on there are batches.

        Args:
            tokenizer: the model's, whatever the configuration says.
            picture_format: how its encoder wants pictures.
            max_positions: tokens that its decoder has positions for.
            only: the one split that is wanted; None is all.
            packed_multiple: of tokens, for the packed length of a batch, see `pack`.

        Raises:
            UserError: the data set cannot be read or has no such split, or a caption is longer than the decoder takes.
        """
        if only is not None and only not in self.splits:
            raise UserError(f"split={only} is not in this data set; it has {', '.join(self.splits)}")
        self.tokenizer, self.picture_format = tokenizer, picture_format
        self.tokens, self._packed_multiple = {}, packed_multiple
        for name in [only] if only else self.splits:
            tokens = TokenArrays.encode(self.splits[name].captions, tokenizer, self.max_tokens, name)
            if tokens.longest > max_positions:
                raise UserError(
                    f"data.max_tokens={self.max_tokens} is more than the decoder's {max_positions} positions, and a "
                    f"caption of {name} has {tokens.longest} tokens; lower it"
                )
            self.tokens[name] = tokens
        self.fit_pictures(list(self.tokens))

    def fit_pictures(self, splits: Sequence[str]) -> None:
        """What the pictures of these splits owe to `picture_format`, which is known by now; here nothing."""

    def encode(self, encoder: FrozenEncoder, folder: Path, stored_as: str) -> None:
        """Have every picture encoded that the cache in `folder` lacks; from now on batches hold its outputs.

        Args:
            encoder: as it stays for the whole run.
            folder: of all caches.
            stored_as: the number format that outputs are kept in, `bfloat16` or `float32`.
        """
        workers = self._num_workers
        self._encoded = encode_once(self.splits, encoder, self.picture_format, folder, stored_as, workers)

    def train_dataloader(self) -> DataLoader:
        """Shuffled and augmented."""
        return self.loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        """In order, every caption once."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        """In order, every caption once."""
        return self.loader("test")

    def rows(self, split: str, training: bool = False, captions_per_image: int | None = None) -> CaptionRows:
        """The rows of one split, augmented if they are to train on; `captions_per_image` are the usual if not given."""
        assert self.tokens, "connect(...) says first which model the data is for"
        evaluation = EvaluationTransform(self.picture_format)
        augmented = training and self._overfit_images is None
        augmentation = TrainingTransform(self.picture_format, **self._augmentation) if augmented else None
        pictures = self.splits[split]
        if augmented and self.training_pictures is not None:
            pictures = replace(pictures, load=self.training_pictures)
        return CaptionRows(
            pictures,
            self.tokens[split],
            captions_per_image or self._captions_per_image,
            self.seed,
            evaluation,
            augmentation,
            self._encoded.get(split),
        )

    def samples(self, count: int) -> tuple[Tensor, list[int | str], list[list[str]]]:
        """Up to `count` validation pictures, spread over the split: (count, 3, H, W) uint8, image ids, captions."""
        split, rows = self.splits["val"], self.rows("val")
        pixels = rows.pixels_of(spread(count, len(split)))
        chosen = list(pixels)
        ids, captions = [split.image_ids[i] for i in chosen], [list(split.captions[i]) for i in chosen]
        return torch.stack(list(pixels.values())), ids, captions

    def whole_pictures(self, split: str, count: int) -> DataLoader:
        """Up to `count` pictures, spread over a split, each one row with all its captions; each rank has its share."""
        rows = self.rows(split, captions_per_image=sys.maxsize)
        shares = np.array_split(spread(count, len(rows)), self._world_size)  # side by side, as they are stored
        share = [(0, row) for row in shares[self._rank].tolist()]
        batches = [share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size)]
        return row_loader(rows, batches, self._num_workers, persistent=False)

    def references(self, split: str) -> dict[int | str, Sequence[str]]:
        """The captions of each picture of a split, by image id."""
        pictures = self.splits[split]
        return dict(zip(pictures.image_ids, pictures.captions, strict=True))

    def loader(self, split: str, training: bool = False) -> DataLoader:
        """Batches of one split for this process's rank."""
        rows, place = self.rows(split, training), {"rank": self._dealt, "world_size": self._world_size}
        near = rows.neighbours and self.in_lanes(rows.neighbours)
        batches = EpochBatches(len(rows), self.batch_size, shuffle=training, seed=self.seed, neighbours=near, **place)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        how: dict[str, Any] = {"pin_memory": on_gpu, "multiple": self._packed_multiple}
        return row_loader(rows, batches, self._num_workers, persistent=True, **how)

    def in_lanes(self, near: Neighbours) -> Neighbours:
        """With the lanes of an epoch's order, see `EpochBatches`; here one."""
        return near

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _dealt(self) -> int:
        """Which of the rows that are dealt out are this rank's: those of a machine's ranks leave one remainder."""
        if self._machines == 1:
            return self._rank
        assert self.trainer is not None
        return self.trainer.local_rank * self._machines + self.trainer.node_rank

    @property
    def _machines(self) -> int:
        return self.trainer.num_nodes if self.trainer else 1

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


class Photographs:
    """Stored pictures, decoded: called with i gives photograph i.

    Set-up has looked at them, though not at every byte; what is found only now raises DamagedPicture.

    Attributes:
        prepared: where they lie stored small; those that do not are read from where they are stored.
    """

    prepared: Places | None = None

    def __init__(self, stored: StoredPictures, on_missing: str):
        self.stored = stored
        self._on_missing = on_missing

    def __call__(self, i: int) -> Image.Image:
        if self.prepared is not None and self.prepared.pack_of[i] >= 0:
            return self.prepared.load(i)
        try:
            return decode_picture(self.stored.read(i))
        except UnreadablePicture as error:
            without = "delete it" if self._on_missing == "skip" else "go on without it by data.on_missing=skip"
            raise DamagedPicture(f"{self.stored.name(i)} cannot be read: {error}; replace it, or {without}") from error

    def identity(self, i: int) -> str:
        """Its name and stamp: of a file the whole path, size in bytes and time of change."""
        name = self.stored.name(i)
        path = name if "://" in name else os.path.abspath(name)  # noqa: PTH100  # Path.resolve asks the disk
        return f"{path} {' '.join(map(str, self.stored.stamp(i) or ()))}"


class StoredDataModule(CaptionDataModule):
    """Photographs that are stored somewhere; a subclass says in `read` which there are, as `Photographs`.

    Args:
        root: the folder that names of prepared pictures are relative to.
        on_missing: `error`, or `skip` to leave out what is missing or cannot be read.
        prepared: the folder of prepared pictures, which augmentation reads where they are there, current and large
            enough; `auto` is `prepared` under root, if it is there; None reads the pictures themselves. What is not
            augmented (validation, test, overfitting) always is: it must equal the encoder's processor to the bit.
    """

    def __init__(self, *, root: Path, on_missing: str, prepared: str | None, **common: Any):
        super().__init__(**common)
        self._root, self._on_missing, self._prepared = root, on_missing, prepared
        self.prepared_folder = root / "prepared" if prepared in ("auto", None) else Path(prepared)

    @cached_property
    def splits(self) -> dict[str, Split]:
        """As `CaptionDataModule.splits`; a folder of prepared pictures that is named must hold some."""
        if self._prepared not in ("auto", None) and not packs_in(self.prepared_folder):
            raise UserError(
                f"data.prepared={self._prepared} holds no prepared pictures; make them with python prepare.py and the "
                "same data=... data.root=... data.prepared=..., or leave data.prepared out"
            )
        return super().splits

    def prepare(self, size: int, num_workers: int) -> Outcome:
        """Store the training photographs with `size` pixels on the shorter side, where they are not so stored."""
        if self._prepared is None:
            raise UserError("data.prepared=null names no folder; leave it out, or set data.prepared=PATH")
        return prepare_pictures(self.prepared_folder, self._root, stored_of(self.read()["train"]), size, num_workers)

    def fit_pictures(self, splits: Sequence[str]) -> None:
        """Where training reads its photographs: prepared, if that is wanted and they are large enough."""
        if len(splits) < len(self.splits):
            return  # one alone is not trained on
        files, encoder = copy(self.splits["train"].load), self.picture_format
        # An encoder that cuts its part out of pictures as they are wants no smaller ones.
        wanted = self._prepared is not None and self._overfit_images is None and encoder.resizes
        assert isinstance(files, Photographs)
        pixels = encoder.resize_shortest or max(encoder.resize_whole or encoder.size)
        files.prepared = self._large_enough(files.stored, pixels) if wanted else None
        self.training_pictures = None if files.prepared is None else files
        if files.prepared is None:
            log.info("training pictures: read as they are stored")

    def _large_enough(self, stored: StoredPictures, pixels: int) -> Places | None:
        """The prepared pictures, if there are any, of at least so many pixels on the shorter side."""
        folder = readable(self.prepared_folder)
        places = find_prepared(self.prepared_folder, self._root, stored)
        if places.size is None:
            if packs_in(self.prepared_folder):
                log.warning("of the pictures in %s none is current; python prepare.py makes them anew", folder)
            return None
        if places.size < pixels:
            problem = (
                f"the pictures in {folder} have {places.size} pixels on the shorter side, and the model wants "
                f"{pixels}; python prepare.py ... size={8 * ceil(pixels / 7)} makes larger ones"
            )
            if self._prepared != "auto":
                raise UserError(f"{problem}, data.prepared=null does without")
            log.warning("%s", problem)
            return None
        log.info("training pictures: %d prepared ones of %d pixels in %s", len(places), places.size, folder)
        if others := len(stored) - len(places):
            log.warning(
                "%d others are new or have changed since, and are read as they are stored; run prepare.py", others
            )
        return places


def stored_of(split: Split) -> StoredPictures:
    """Where the pictures of a split of photographs lie."""
    assert isinstance(split.load, Photographs)
    return split.load.stored


class PhotographDataModule(StoredDataModule):
    """Photographs under `root` with the captions of the annotation files there; see `datasets.py` and `splits.py`."""

    def __init__(self, *, dataset: str, root: str, layout: str, fraction: float, use_restval: bool, **common: Any):
        super().__init__(root=Path(root).expanduser(), **common)
        self._dataset, self._layout = dataset, layout
        self._fraction, self._use_restval = fraction, use_restval

    def find(self) -> tuple[list[Photograph], list[Path]]:
        """The captioned photographs, and the files that name them."""
        where = self._dataset, self._root, self._layout
        return find_photographs(*where), annotation_files(*where)

    def read(self) -> dict[str, Split]:
        """Read the annotation files, divide the photographs, look at their files."""
        photographs, annotations = self.find()
        divided = split_photographs(
            photographs,
            seed=self.seed,
            fraction=self._fraction,
            use_restval=self._use_restval,
            on_missing=self._on_missing,
            annotations=annotations,
        )
        divided = without_unreadable(divided, self._on_missing)
        refuse_empty(divided)
        return {name: split_of(photographs, self._on_missing) for name, photographs in divided.items() if photographs}


class FolderDataModule(PhotographDataModule):
    """Pictures and captions of one's own under `root`, in any of the forms of `readers/folder.py`.

    Args:
        keys: those of `FolderConfig`.
    """

    def __init__(self, **keys: Any):
        self._own = OwnFolder.of(keys)
        super().__init__(**{name: value for name, value in keys.items() if name not in OWN_KEYS})

    def find(self) -> tuple[list[Photograph], list[Path]]:
        """As `PhotographDataModule.find`."""
        return read_folder(replace(self._own))  # a copy, so that the listing is not kept


class IndexedDataModule(StoredDataModule):
    """Photographs in shards or tables that are indexed once, see `index.py`; a subclass says in `indexed` which.

    Args:
        columns: what in them is a picture, what its captions.
        fraction: part of the training photographs.
        cache: the folder of indices.
    """

    def __init__(self, *, columns: Columns, fraction: float, cache: str, **common: Any):
        super().__init__(**common)
        self._columns, self._fraction, self._cache = columns, fraction, Path(cache).expanduser()

    @abstractmethod
    def indexed(self) -> dict[str, tuple[list[Index], IndexedPictures]]:
        """What was found, by split; of `train` alone where the seed is to divide it."""

    def read(self) -> dict[str, Split]:
        """Index what is not yet indexed, divide the pictures."""
        found = self.indexed().items()
        pictures = {split: usable(indices, of_split, self._on_missing) for split, (indices, of_split) in found}
        ids = dict(zip(pictures, ids_of(list(pictures.values())), strict=True))
        if len(pictures) == 1:
            numbers = divided_by_seed(ids["train"], self.seed)
            pictures = {split: pictures["train"].part(some) for split, some in numbers.items()}
            ids = {split: ids["train"].part(some) for split, some in numbers.items()}
        refuse_empty(pictures)
        refuse_shared(pictures)
        some = part_by_seed(ids["train"], self._fraction, self.seed)
        pictures["train"], ids["train"] = pictures["train"].part(some), ids["train"].part(some)
        return {split: self._split(ids[split], one) for split, one in pictures.items() if len(one)}

    def _split(self, ids: Texts, pictures: IndexedPictures) -> Split:
        captions, load = pictures.rows.captions, Photographs(pictures, self._on_missing)
        skips = self._on_missing == "skip"
        return Split(ids, captions, load, skips_damaged=skips, neighbours=pictures.neighbours())


class ShardsDataModule(IndexedDataModule):
    """Photographs in the shards that patterns name; see `shards.py`.

    Args:
        dataset: what it is called.
        root, val_root, test_root: the shards of each split; without `val_root`, root is divided by seed.
        image_column, caption_column, captions_per_file: where in a shard pictures and captions are.
        local_cache: the folder of blocks of what lies elsewhere; None is one in `cache`.
        cache_gigabytes: of these, at most.
        lanes: see `EpochBatches`; None is one for each machine.
    """

    def __init__(
        self,
        *,
        dataset: str,
        root: str | list[str],
        val_root: str | list[str] | None,
        test_root: str | list[str] | None,
        cache: str,
        local_cache: str | None,
        cache_gigabytes: float,
        lanes: int | None,
        **others: Any,
    ):
        first = root if isinstance(root, str) else root[0]
        here = Path(cache) if is_remote(first) else Path(first).expanduser().parent
        super().__init__(root=here, cache=cache, columns=Columns.taken_from(others), **others)
        self._dataset, self._patterns = dataset, {"root": root, "val_root": val_root, "test_root": test_root}
        blocks = Path(local_cache).expanduser() if local_cache else self._cache / "blocks"
        self._blocks, self._lanes = Blocks(blocks, int(cache_gigabytes * 1e9)), lanes

    def indexed(self) -> dict[str, tuple[list[Index], IndexedPictures]]:
        """The shards of each split."""
        shards = {key: shard_names(named, f"data.{key}") for key, named in self._patterns.items() if named is not None}
        every = list(chain.from_iterable(shards.values()))
        if any(map(is_remote, every)):
            self._blocks.require_room()
        indices = iter(self._indices(every))
        found: dict[str, tuple[list[Index], IndexedPictures]] = {}
        for split, named in zip(("train", "val", "test"), shards.values(), strict=False):
            of_split = list(islice(indices, len(named)))
            found[split] = of_split, ShardPictures(of_split, self._blocks, near=self._lanes is not None)
        return found

    def in_lanes(self, near: Neighbours) -> Neighbours:
        """Each machine reads lanes of its own, where they can be dealt out so, and holds some of each at once."""
        lanes = self._lanes or self._machines
        parts = gcd(lanes, self._machines)
        if near.at_once < lanes // parts:
            raise UserError(
                f"data.lanes={lanes}: each machine reads {lanes // parts} of them, a range or a row group of each at "
                f"once, and {near.at_once} fit; raise data.cache_gigabytes (not for Parquet), or take fewer lanes"
            )
        if parts < self._machines:
            _warn_of_lanes(lanes, self._machines, parts)
        return replace(near, lanes=lanes)

    def _indices(self, shards: list[str]) -> list[Index]:
        """Of each shard, by `num_workers` processes, which end with this one.

        Further ranks begin each with other shards, so that all that share data.cache share the work.
        """
        make = Indices(shards, self._columns, self._cache, self._blocks)
        workers = min(self._num_workers, len(shards) // 2)
        drawn = torch.Generator()  # a loader draws a seed, and the run's weights are drawn from the global generator
        turns = list(range(len(shards)))
        if getattr(rank_zero_only, "rank", 0):
            np.random.default_rng().shuffle(turns)
        loader = DataLoader(make, batch_size=None, sampler=turns, num_workers=workers, generator=drawn)
        found: dict[int, Index] = {}
        with progress(len(shards), "indexing", "shards", leave=False, delay=2) as bar:
            for i, index in zip(turns, loader, strict=True):
                found[i] = index
                bar.update()
        made = [found[i] for i in range(len(shards))]
        log.info("%s: %d pictures in %d shards", self._dataset, sum(len(one.rows) for one in made), len(shards))
        return made


@cache  # once, not of each split
def _warn_of_lanes(lanes: int, machines: int, parts: int) -> None:
    log.warning(
        "data.lanes=%d is no multiple of the %d machines: each fetches 1/%d of the shards, not 1/%d; take lanes=%d",
        lanes, machines, parts, machines, lanes * machines // parts,
    )  # fmt: skip


class HubDataModule(IndexedDataModule):
    """A data set of the `datasets` library, from the hub or from a folder; see `arrow.py`.

    Args:
        dataset: what it is called.
        name: OWNER/NAME, or a folder.
        subset, revision: of it, on the hub.
        split_column: of rows that say which split they are in.
        image_column, caption_column, captions_per_file: where in a row pictures and captions are.
    """

    def __init__(
        self,
        *,
        dataset: str,
        name: str,
        subset: str | None,
        revision: str | None,
        split_column: str | None,
        **others: Any,
    ):
        folder = Path(name).expanduser()
        others["root"] = folder.resolve() if folder.is_dir() else Path(others["cache"])
        super().__init__(columns=Columns.taken_from(others), **others)
        self._dataset, self._which = dataset, (name, subset, revision, split_column)

    def indexed(self) -> dict[str, tuple[list[Index], IndexedPictures]]:
        """The splits that `datasets` finds."""
        found: dict[str, tuple[list[Index], IndexedPictures]] = {}
        for split, parts in hub_splits(*self._which).items():
            title = f"{self._which[0]} {split}"
            indices = [hub_index(title, part, self._columns, self._cache, self._root) for part in parts]
            found[split] = indices, HubPictures(indices, parts, self._columns)
            log.info("%s: %d pictures", title, sum(len(index.rows) for index in indices))
        return found


class Indices(Dataset[Index]):
    """Item i is the index of shard i."""

    def __init__(self, shards: list[str], columns: Columns, folder: Path, blocks: Blocks):
        self._shards, self._how = shards, (columns, folder, blocks)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, i: int) -> Index:
        return index_of(self._shards[i], *self._how)


def split_of(photographs: Sequence[Photograph], on_missing: str) -> Split:
    """Photographs in files, as a split."""
    load = Photographs(PictureFiles([photograph.path for photograph in photographs]), on_missing)
    captions = [photograph.captions for photograph in photographs]
    return Split([p.image_id for p in photographs], captions, load, skips_damaged=on_missing == "skip")
