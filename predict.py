"""Caption photographs: `python predict.py checkpoint=RUN_DIR input=FOLDER output=captions.jsonl`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig

from captioning.commands import built, one_sentence_errors, plain, quiet_libraries, require, whole
from captioning.errors import UserError
from captioning.overrides import prepared_arguments
from captioning.prediction.formats import check_image_ids
from captioning.prediction.results import CaptionWriter, check_output, settings_path
from captioning.prediction.sources import find_pictures
from captioning.prediction.text_files import TextFiles
from captioning.prediction.views import planned_views
from captioning.weights import find_weights

log = logging.getLogger("predict")

CONF = Path(__file__).parent / "conf"


@dataclass
class Prediction:
    """How many pictures got a caption, how many could not be read, and the file with a row for each."""

    captioned: int
    failed: int
    output: Path


def predict(cfg: DictConfig) -> Prediction:
    """Find the pictures, caption them batch by batch, and write a row for each in input order."""
    output = Path(one_path(cfg, "output", "output=captions.jsonl"))
    check_output(output, cfg.overwrite)
    weights = find_weights(one_path(cfg, "checkpoint", "checkpoint=runs/MY_RUN"))
    source = require(cfg, "input", "input=my_photos")
    paths = find_pictures([str(one) for one in source] if isinstance(source, list) else source)
    check_image_ids(output, paths)
    text_files = TextFiles(cfg.text_files, paths, source, overwrite=cfg.overwrite)
    views = planned_views(output, paths, cfg.overwrite, **plain(cfg, "gallery", "heat_maps", "heat_maps_layers"))
    batch_size = whole(cfg, "batch_size", 1)

    # Imported here, since they take seconds: help, a typo or a wrong path is answered before.
    from tqdm import tqdm

    from captioning.data.randomness import addressed_seed
    from captioning.model.generation import Caption, generate, require_room
    from captioning.prediction.batches import picture_loader
    from captioning.prediction.devices import autocast, chosen_device, placed, reading_processes
    from captioning.prediction.loading import load_captioner

    quiet_libraries()
    decoding = built(cfg.decoding, "decoding")
    device = chosen_device(cfg.device)
    num_workers = reading_processes(device, cfg.num_workers)
    precision = autocast(device, cfg.precision)
    captioner, tokenizer = load_captioner(weights)
    require_room(captioner, decoding)
    captioner = placed(captioner, device, cfg.precision)
    views.attach(captioner, tokenizer, decoding.max_new_tokens)
    loader = picture_loader(
        paths,
        captioner.picture_format,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        thumbnails=views.gallery is not None,
    )
    settings = plain(cfg, "checkpoint", "input", "decoding", "precision", "batch_size")
    with (
        text_files,
        CaptionWriter(output, settings, overwrite=cfg.overwrite) as writer,
        views,
        tqdm(total=len(paths), unit=" pictures", desc="captioning") as progress,
    ):
        for batch in loader:
            captions: list[Caption] = []
            for index, reason in batch.unreadable:
                writer.write_error(index, paths[index], reason)
            if batch.pixel_values is not None:
                addresses = [addressed_seed(paths[index].name) for index in batch.indices]
                with precision:
                    captions = generate(
                        captioner, batch.pixel_values.to(device, non_blocking=True), decoding, addresses
                    )
            for index, caption in zip(batch.indices, captions, strict=True):
                scored = [(tokenizer.decode(one.token_ids), one.log_probability) for one in caption.alternatives]
                text = tokenizer.decode(caption.token_ids)
                writer.write_caption(index, paths[index], text, caption.log_probability, scored)
                text_files.add(paths[index], text)
            views.add(batch, captions)
            progress.update(len(batch.indices) + len(batch.unreadable))
    log.info("%d captions in %s, how they were made in %s", writer.captioned, output, settings_path(output))
    for made in views.made:
        log.info("%s: %s", *made)
    return Prediction(writer.captioned, writer.failed, output)


def one_path(cfg: DictConfig, key: str, example: str) -> str:
    """The value of a key that must name one file or folder."""
    value = require(cfg, key, example)
    if isinstance(value, list | dict):
        raise UserError(f"{key}={value} must be one path, for example {example}")
    return str(value)


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Ends with status 0 if every picture got a caption, 1 after a user's mistake, 2 if some could not be read."""
    with one_sentence_errors():
        if predict(cfg).failed:
            sys.exit(2)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "predict")
    main()
