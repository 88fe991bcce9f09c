"""What a prediction makes for the eye, if asked: the gallery and the heat maps. Imports no torch until it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from PIL import Image

from captioning.data.images import UnreadablePicture, read_picture
from captioning.errors import UserError
from captioning.prediction.cards import GalleryEntry
from captioning.prediction.gallery import GalleryWriter, check_gallery
from captioning.prediction.heat_map_files import HeatMapFolder, chosen_pictures, heat_maps_folder
from captioning.prediction.outputs import real_file

if TYPE_CHECKING:
    from torch import Tensor

    from captioning.data.tokenizer import CaptionTokenizer
    from captioning.model.captioner import ImageCaptioner
    from captioning.model.generation import Caption
    from captioning.prediction.batches import PictureBatch


def gallery_path(wanted: object, output: Path) -> Path | None:
    """Where the key `gallery` puts the page: nowhere (false), beside `output` (true: `captions.html`), or at a path.

    Raises:
        UserError: if it is none of these, or the output itself.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True and not (isinstance(wanted, str) and wanted):
        raise UserError(f"gallery={wanted} must be true, false or a path such as captions.html")
    path = output.with_suffix(".html") if wanted is True else Path(str(wanted))
    if real_file(path) == real_file(output):
        raise UserError(f"gallery={path} is the output too; name another file with gallery=...")
    return path


def planned_views(
    output: Path,
    paths: Sequence[Path],
    overwrite: bool,
    *,
    resume: bool = False,
    gallery: object,
    heat_maps: object,
    heat_maps_layers: object,
) -> Views:
    """The views that these keys of `conf/predict.yaml` ask for, of the pictures at `paths`.

    Raises:
        UserError: for a value that means nothing, a picture that is not there, or a place that can't be written.
    """
    chosen = chosen_pictures(heat_maps, paths)
    may = {"overwrite": overwrite, "resume": resume}
    folder = HeatMapFolder(heat_maps_folder(output), paths, chosen, **may) if chosen else None
    page = gallery_path(gallery, output)
    if page:
        check_gallery(page, overwrite or resume)
    writer = GalleryWriter(page, page.stem, **may) if page else None
    return Views(writer, folder, paths, heat_maps_layers)


class Views:
    """The gallery and the heat maps of one prediction; where neither is asked for, everything here does nothing.

    Used in a `with` block, whose end writes the files: whole, or not at all.

    Args:
        gallery: None makes none.
        heat_maps: the folder for strips; None makes none.
        paths: of all pictures, by their places.
        layers: the key `heat_maps_layers`.
    """

    def __init__(
        self, gallery: GalleryWriter | None, heat_maps: HeatMapFolder | None, paths: Sequence[Path], layers: object
    ):
        self.gallery, self._heat_maps = gallery, heat_maps
        self._paths, self._wanted_layers = paths, layers

    @property
    def looks_into_the_model(self) -> bool:
        """Whether heat maps are made."""
        return self._heat_maps is not None

    @property
    def made(self) -> list[tuple[str, Path]]:
        """What there is to look at, and where."""
        found = (
            ("gallery", self.gallery and self.gallery.path),
            ("heat maps", self._heat_maps and self._heat_maps.path),
        )
        return [(what, path) for what, path in found if path]

    def attach(self, captioner: ImageCaptioner, tokenizer: CaptionTokenizer, max_new_tokens: int) -> None:
        """Say whose captions they are; raises UserError if its decoder lacks a layer that is asked for."""
        from captioning.prediction.heat_maps import checked_layers

        self._layers = checked_layers(self._wanted_layers, captioner)
        self._captioner, self._tokenizer, self._max_new_tokens = captioner, tokenizer, max_new_tokens

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self.gallery, self._heat_maps):
                if part:
                    stack.enter_context(part)
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.__exit__(kind, error, traceback)

    def add(
        self, batch: PictureBatch, captions: Sequence[Caption], references: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        """A batch and the captions of the pictures that could be read; references by their places, if there are any."""
        for place, reason in batch.unreadable:
            if self.gallery:
                self.gallery.add(place, GalleryEntry(self._paths[place], error=reason))
        for row, (place, caption) in enumerate(zip(batch.indices, captions, strict=True)):
            strip = None
            if self._heat_maps and place in self._heat_maps:
                assert batch.pixel_values is not None
                strip = self._strip(self._paths[place], caption, batch.pixel_values[row])
                self._heat_maps.write(place, strip)
            if self.gallery:
                known = (references or {}).get(place, ())
                self.gallery.add(place, self._entry(place, caption, batch.thumbnails[row], known, strip))

    def score(self, per_picture: Mapping[int, Mapping[str, float]]) -> None:
        """The scores of the pictures at these places, known when all have a caption."""
        if self.gallery:
            for place, figures in per_picture.items():
                self.gallery.add_scores(place, figures)

    def _entry(
        self,
        place: int,
        caption: Caption,
        thumbnail: bytes | None,
        references: Sequence[str],
        strip: Image.Image | None,
    ) -> GalleryEntry:
        decode = self._tokenizer.decode
        return GalleryEntry(
            self._paths[place],
            decode(caption.token_ids),
            caption.log_probability,
            references=references,
            alternatives=[(decode(one.token_ids), one.log_probability) for one in caption.alternatives],
            picture=thumbnail,
            heat_map=strip,
        )

    def _strip(self, path: Path, caption: Caption, pixel_values: Tensor) -> Image.Image:
        from captioning.prediction.heat_maps import draw_heat_maps

        try:
            photograph = read_picture(path)
        except UnreadablePicture:
            photograph = None  # gone since it was captioned; the encoder's own view of it is still there
        return draw_heat_maps(
            self._captioner,
            self._tokenizer,
            pixel_values,
            caption.token_ids,
            photograph=photograph,
            ended=len(caption.token_ids) < self._max_new_tokens,
            layers=self._layers,
        )
