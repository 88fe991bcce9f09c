"""A run's captioner as a folder for transformers: `python -m captioning.export RUN_DIR FOLDER [--push OWNER/NAME]`."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning.commands import one_sentence_errors
from captioning.errors import UserError
from captioning.files import atomic_folder, readable, write_atomically
from captioning.hub import pushed, require_push
from captioning.model_card import RunRecord, model_card
from captioning.weights import HuggingFaceModel, find_weights

log = logging.getLogger("export")

GREEDY = Path(__file__).parents[1] / "conf" / "decoding" / "greedy.yaml"  # for weights without a run


def export(run: str, folder: str, *, overwrite: bool = False, push: str | None = None) -> Path:
    """Write the folder: weights, configuration, image processor, tokenizer, generation settings and model card.

    Args:
        run: a run folder of `train.py`, whose best checkpoint it is, one `.ckpt` file, or what else `find_weights`
            finds.
        folder: what to make; it appears when it is complete.
        overwrite: whether to replace a model that lies there.
        push: a name on the hub to upload it to.

    Raises:
        UserError: if there is no such run, the folder exists or cannot be written, or the hub cannot be had.
    """
    weights = find_weights(run, "RUN_DIR")
    target = Path(folder)
    _check_target(target, overwrite)
    if push is not None:
        require_push(push)

    # Imported here, since they take seconds: a wrong path is answered before.
    from captioning.model.interchange import save_model
    from captioning.prediction.loading import load_captioner

    captioner, tokenizer = load_captioner(weights)
    record = RunRecord(_run_of(weights))
    network: Any = captioner.network
    parameters = sum(weight.numel() for weight in network.parameters())
    with _writable(target), atomic_folder(target) as aside:
        save_model(captioner, aside, generation_settings(record.config, captioner.max_positions))
        tokenizer.save_pretrained(aside, network.config.pad_token_id)
        write_atomically(aside / "README.md", model_card(record, push or target.resolve().name, parameters))
    log.info("model: %s", readable(target))
    if push is not None:
        log.info("on the hub: %s", pushed(target, push))
    return target


def generation_settings(config: DictConfig | None, max_positions: int) -> dict[str, Any]:
    """The run's `decoding` in the words of transformers' `GenerationConfig`, which are ours but for a few.

    >>> sampling = {"_target_": "generation.Sampling", "max_new_tokens": 9, "top_k": None, "seed": 3}
    >>> generation_settings(OmegaConf.create({"decoding": sampling}), max_positions=8)
    {'do_sample': True, 'max_new_tokens': 7, 'top_k': 0}
    """
    decoding = OmegaConf.load(GREEDY) if config is None else config.decoding
    settings: Any = OmegaConf.to_container(decoding, resolve=True)
    settings = {k: v for k, v in settings.items() if k not in ("seed", "n_best")}
    settings["max_new_tokens"] = min(settings["max_new_tokens"], max_positions - 1)  # BOS takes one
    if "top_k" in settings:
        settings["top_k"] = settings["top_k"] or 0  # which keeps all
    return {"do_sample": settings.pop("_target_").endswith(".Sampling"), **settings}


def _run_of(weights: Path | HuggingFaceModel) -> Path | None:
    if isinstance(weights, HuggingFaceModel):
        return None
    run = weights.resolve().parents[1]
    return run if (run / ".hydra").is_dir() or (run / "results.md").is_file() else None


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"FOLDER={target} is a file; name a folder to make")
    if not overwrite:
        raise UserError(f"FOLDER={target} exists already; replace it with --overwrite, or name another")
    if any(target.iterdir()) and not (target / "config.json").is_file():
        raise UserError(f"FOLDER={target} holds no exported model, so --overwrite does not replace it; name another")


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """What the disk objects to, as a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"FOLDER={target} can't be written: {error.strerror or error}; name another") from error


def main(arguments: list[str] | None = None) -> None:
    """The command; ends with status 1 and one sentence after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m captioning.export", description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder of train.py (its best checkpoint) or a .ckpt file")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub as well")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with one_sentence_errors():
        export(given.run, given.folder, overwrite=given.overwrite, push=given.push)


if __name__ == "__main__":
    main()
