"""A run's captioner as a folder for transformers: `python -m captioning.export RUN_DIR FOLDER [--push OWNER/NAME]`.

The folder holds weights, configuration, image processor, tokenizer and generation settings, and a model card that says
what lies in the run's folder: data, recipe and scores. With `--adapter` it holds what a run with `model.lora` has
trained, for peft; without it the adapters are merged into the weights.
"""

import argparse
import logging

from captioning.cli import one_sentence_errors
from captioning.errors import UserError
from captioning.export.folder import export, export_adapter


def main(arguments: list[str] | None = None) -> None:
    """The command; ends with status 1 and one sentence after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m captioning.export", description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", help="a run folder of train.py (its best checkpoint) or a .ckpt file")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that lies there")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub as well")
    parser.add_argument("--adapter", action="store_true", help="only what a run with model.lora has trained, for peft")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="onnx=true; conf/export.yaml has them all")
    given = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with one_sentence_errors():
        if given.adapter and given.push:
            raise UserError("--push uploads a whole model; leave --adapter or --push out")
        if given.adapter:
            if given.settings:
                raise UserError(f"{given.settings[0]} is for a whole model; leave --adapter or it out")
            export_adapter(given.run, given.folder, overwrite=given.overwrite)
        else:
            export(given.run, given.folder, *given.settings, overwrite=given.overwrite, push=given.push)


if __name__ == "__main__":
    main()
