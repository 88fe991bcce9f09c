"""How close does `predict.py` come to the speed of the model alone, and how does transformers do on the same folder?

python benchmarks/prediction.py [--small] [--repeats N]

A folder of drawn JPEGs of 640 x 480 pixels, greedy captions of at most 20 tokens, batches of 16, random weights.
End to end is `predict(cfg)` from the first picture read to the file in place, without imports and the loading of the
model. Alone are the model on pictures that lie in memory and the loader without a model; the slower of the two is what
end to end is held against. The peer reads, processes, generates and writes batch by batch, as the examples of
transformers do. --small has tiny sizes, where the loader is the slower one.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from measuring import Ratio, at_least, interleaved_seconds, publish, ratio_table, setting
from pictures import draw
from PIL import Image
from training_step import FULL, SMALL, network_of
from transformers import VisionEncoderDecoderModel, ViTImageProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import predict
from captioning.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Greedy, generate
from captioning.prediction.batches import picture_loader
from captioning.prediction.devices import placed
from captioning.prediction.results import CaptionWriter

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH, TOKENS, WORKERS = 16, 20, 2
LEAST = 0.9  # of the slower of the model alone and the loader alone


class Folder:
    """Pictures, a checkpoint, and the three ways through them."""

    def __init__(self, place: Path, size: dict[str, int], count: int):
        self.place, self.side = place, size["image_size"]
        self.paths = [place / f"{number:04d}.jpg" for number in range(count)]
        for number, path in enumerate(self.paths):
            draw(path, number)
        torch.manual_seed(0)
        network = network_of(size, "gelu_pytorch_tanh").eval()
        self.tokenizer = CaptionTokenizer.train(["a red circle"], vocab_size=size["vocab_size"])
        captioner = ImageCaptioner(network, PictureFormat((self.side,) * 2, mean=(0.5,) * 3, std=(0.5,) * 3))
        described = {"description": captioner.description(), "tokenizer": self.tokenizer.to_json()}
        weights = {f"captioner.{name}": value for name, value in captioner.state_dict().items()}
        torch.save({"captioner": described, "state_dict": weights}, place / "random.ckpt")
        self.captioner = placed(captioner.eval(), torch.device("cpu"), 32)
        self.batches = [batch.pixel_values for batch in self.loader()]
        self.peer: VisionEncoderDecoderModel = network
        self.processor = ViTImageProcessor(size={"height": self.side, "width": self.side})

    def loader(self) -> Any:
        """The loader of `predict.py`."""
        picture_format = self.captioner.picture_format
        return picture_loader(self.paths, picture_format, batch_size=BATCH, num_workers=WORKERS, pin_memory=False)

    def load(self) -> None:
        """The loader alone."""
        for _ in self.loader():
            pass

    def caption(self) -> None:
        """The model alone."""
        for pictures in self.batches:
            generate(self.captioner, pictures, Greedy(TOKENS))

    def transformers(self) -> None:
        """The peer, from files to a file."""
        with (self.place / "peer.jsonl").open("w") as file, torch.inference_mode():
            for first in range(0, len(self.paths), BATCH):
                paths = self.paths[first : first + BATCH]
                images = [Image.open(path).convert("RGB") for path in paths]
                pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
                rows = self.peer.generate(pixel_values=pixel_values, do_sample=False, max_new_tokens=TOKENS)
                for path, row in zip(paths, rows.tolist(), strict=True):
                    file.write(json.dumps({"path": str(path), "caption": self.tokenizer.decode(row)}) + "\n")


class Clock(CaptionWriter):
    """The writer of `predict.py`, which also notes how long it was open."""

    seconds: float

    def __enter__(self) -> "Clock":
        self._since = time.perf_counter()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Clock.seconds = time.perf_counter() - self._since


def end_to_end(folder: Folder) -> Callable[[], float]:
    """`predict.py` on the folder; what it returns are the seconds that its writer was open."""
    predict.CaptionWriter = Clock  # type: ignore[misc]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"checkpoint={folder.place / 'random.ckpt'}", f"input={folder.place}", "device=cpu", "overwrite=true"]
        sizes = [f"batch_size={BATCH}", f"num_workers={WORKERS}", f"decoding.max_new_tokens={TOKENS}"]
        cfg = compose("predict", [*given, *sizes, f"output={folder.place / 'ours.jsonl'}"])

    def run() -> float:
        predict.predict(cfg)
        return Clock.seconds

    return run


def ratios_of(small: bool, repeats: int) -> list[Ratio]:
    """End to end beside the slower part alone, and beside transformers."""
    count = 512 if small else 64
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(Path(place), SMALL if small else FULL, count)
        cases: dict[str, Callable[[], float | None]] = {
            "loader alone": folder.load,
            "model alone": folder.caption,
            "predict.py": end_to_end(folder),
            "transformers": folder.transformers,
        }
        rates = {name: count / seconds for name, seconds in interleaved_seconds(cases, repeats).items()}
    print({name: f"{rate:.2f} pictures/s" for name, rate in rates.items()}, flush=True)
    ours, slower = rates["predict.py"], min(("loader alone", "model alone"), key=rates.__getitem__)
    shown = {name: f"{rate:.1f} pictures/s" for name, rate in rates.items()}
    size = "small model" if small else "full size"
    return [
        at_least(f"folder to file, {size}", shown["predict.py"], f"{slower} {shown[slower]}", ours / rates[slower],
                 None if small else LEAST),
        at_least(f"folder to file, {size}", shown["predict.py"], f"transformers {shown['transformers']}",
                 ours / rates["transformers"], None),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: half a minute")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{setting()}\n", flush=True)
    ratios = ratios_of(given.small, given.repeats)
    print(ratio_table(ratios))
    sys.exit(publish(ratios))


if __name__ == "__main__":
    main()
