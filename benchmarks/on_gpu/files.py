"""What the phases `loop` and `predict` read: a checkpoint of ours with random weights, and photographs.

A process of benchmarks/gpu.py, beside the first phases.
"""

import argparse
import random
import shutil
from pathlib import Path

import torch
from pictures import draw
from training_step import network_of

from captioning.data.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.huggingface import captioner_of
from on_gpu.work import FULL, TINY

WORDS = (  # of captions
    *("a", "red", "green", "blue", "yellow", "small", "large", "circle", "square", "triangle", "star", "left"),
    *("right", "above", "below", "of", "and", "the", "is", "are", "two", "three", "one", "man", "woman", "dog"),
    *("cat", "street", "table", "with", "on", "in", "next", "to", "standing", "sitting", "holding", "white", "black"),
)
CHECKPOINT, PHOTOGRAPHS = "random.ckpt", "photographs"


def trained_tokenizer() -> CaptionTokenizer:
    """Of a few hundred tokens; the model has rows for more."""
    return CaptionTokenizer.train([f"{a} {b}" for a in WORDS for b in WORDS], 600)


def checkpoint(path: Path, size: dict[str, int]) -> None:
    """A captioner as train.py writes it."""
    torch.manual_seed(0)
    tokenizer, network = trained_tokenizer(), network_of(size, "gelu_pytorch_tanh")
    end = tokenizer.encode(["a"])[0][-1]
    network.decoder.config.bos_token_id = network.decoder.config.eos_token_id = end
    side = size["image_size"]
    captioner = captioner_of(network, PictureFormat((side, side), (0.5,) * 3, (0.5,) * 3))
    described = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
    weights = {f"captioner.{name}": value for name, value in captioner.state_dict().items()}
    torch.save({"captioner": described, "state_dict": weights}, path)


def photographs(root: Path, count: int) -> None:
    """JPEGs as Flickr8k's release lays them out: 64 drawn ones, again and again."""
    (root / "Images").mkdir(parents=True)
    words, names = random.Random(0), [f"{number:04d}.jpg" for number in range(count)]
    paths = [root / "Images" / name for name in names]
    for number, path in enumerate(paths):
        if number < 64:
            draw(path, number)
        else:
            shutil.copyfile(paths[number % 64], path)
    captions = (
        f"{name}#{k}\t{' '.join(words.choices(WORDS, k=words.randint(9, 16)))}" for name in names for k in range(5)
    )
    (root / "Flickr8k.token.txt").write_text("\n".join(captions) + "\n")
    held_out = max(2, count // 32)
    for which, part in (("train", names[held_out:]), ("dev", names[:held_out])):
        (root / f"Flickr_8k.{which}Images.txt").write_text("\n".join(part) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(2)
    photographs(given.folder / PHOTOGRAPHS, 20 if given.small else 2048)
    checkpoint(given.folder / CHECKPOINT, TINY if given.small else FULL)


if __name__ == "__main__":
    main()
