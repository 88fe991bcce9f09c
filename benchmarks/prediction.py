"""How close does `predict.py` come to the speed of the model alone, and how does transformers do on the same folder?

python benchmarks/prediction.py [--small] [--repeats N]

A folder of drawn JPEGs of 640 x 480 pixels, greedy captions of at most 20 tokens, batches of 16, random weights. Each
case is a process of its own, as a person starts it, which times itself without imports and the loading of the model.
End to end is `predict(cfg)` from the first picture read to the file in place. Alone are the model on pictures that lie
in memory and the loader without a model; the slower of the two is what end to end is held against. The peer reads,
processes, generates and writes batch by batch, as the examples of transformers do. --small has a small model, where
reading takes a fifth of all the work: where both want the same cores, 0.8 of the model alone is the most.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from measuring import Ratio, at_least, publish, ratio_table, setting
from pictures import draw
from PIL import Image
from training_step import FULL, SMALL, network_of
from transformers import ViTImageProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from captioning.data.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.build import load_captioner
from captioning.model.generation import Greedy, generate
from captioning.model.huggingface import captioner_of
from captioning.model.huggingface import compose as composed
from captioning.prediction import run
from captioning.prediction.caption import Work, picture_loader, placed
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import Journal
from captioning.prediction.plan import predict_config

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH, TOKENS = 16, 20
CHECKPOINT = "random.ckpt"
LEAST = 0.9  # of the slower of the model alone and the loader alone


def prepare(folder: Path, size: dict[str, int], count: int) -> None:
    """Pictures, and a checkpoint of random weights."""
    for number in range(count):
        draw(folder / f"{number:04d}.jpg", number)
    torch.manual_seed(0)
    picture_format = PictureFormat((size["image_size"],) * 2, mean=(0.5,) * 3, std=(0.5,) * 3)
    captioner = captioner_of(network_of(size, "gelu_pytorch_tanh"), picture_format)
    tokenizer = CaptionTokenizer.train(["a red circle"], vocab_size=size["vocab_size"])
    described = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
    weights = {f"captioner.{name}": value for name, value in captioner.state_dict().items()}
    torch.save({"captioner": described, "state_dict": weights}, folder / CHECKPOINT)


def loader_of(folder: Path, picture_format: PictureFormat) -> Any:
    """The loader of `predict.py`."""
    paths = sorted(folder.glob("*.jpg"))
    work = Work(InputPictures(paths), Greedy(TOKENS), 32, BATCH, num_workers=0)
    return picture_loader(work, picture_format, torch.device("cpu"))


def loader_alone(folder: Path) -> float:
    """Seconds to read all pictures."""
    captioner, _ = load_captioner(folder / CHECKPOINT)
    start = time.perf_counter()
    for _ in loader_of(folder, captioner.picture_format):
        pass
    return time.perf_counter() - start


def model_alone(folder: Path) -> float:
    """Seconds to caption all pictures, which lie in memory."""
    captioner, _ = load_captioner(folder / CHECKPOINT)
    captioner = placed(captioner, torch.device("cpu"), 32)
    batches = [pixels for _, pixels in loader_of(folder, captioner.picture_format)]
    start = time.perf_counter()
    for pictures in batches:
        generate(captioner, pictures, Greedy(TOKENS))
    return time.perf_counter() - start


class Clock(Journal):
    """The journal of `predict.py`, which also notes how long it was open."""

    seconds: float

    def __enter__(self) -> "Clock":
        self._since = time.perf_counter()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Clock.seconds = time.perf_counter() - self._since


def end_to_end(folder: Path) -> float:
    """Seconds that the journal of `predict.py` was open."""
    run.Journal = Clock  # type: ignore[misc]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"checkpoint={folder / CHECKPOINT}", f"input={folder}", "device=cpu", "overwrite=true"]
        sizes = [f"batch_size={BATCH}", f"decoding.max_new_tokens={TOKENS}"]
        run.predict(predict_config(compose("predict", [*given, *sizes, f"output={folder / 'ours.jsonl'}"])))
    return Clock.seconds


def peer(folder: Path) -> float:
    """Seconds of transformers, from files to a file."""
    captioner, tokenizer = load_captioner(folder / CHECKPOINT)
    weights = captioner.network.state_dict()
    config = captioner.network.config
    network = composed(config.encoder, config.decoder).eval()  # a stock one; ours computes some layers in its own way
    network.load_state_dict(weights)
    processor = ViTImageProcessor(size=dict(zip(("height", "width"), captioner.picture_format.size, strict=True)))
    paths = sorted(folder.glob("*.jpg"))
    start = time.perf_counter()
    with (folder / "peer.jsonl").open("w") as file, torch.inference_mode():
        for first in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[first : first + BATCH]]
            pixel_values = processor(images, return_tensors="pt")["pixel_values"]
            rows = network.generate(pixel_values=pixel_values, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
            for path, row in zip(paths[first:], rows.tolist(), strict=False):
                file.write(json.dumps({"path": str(path), "caption": tokenizer.decode(row)}) + "\n")
    return time.perf_counter() - start


CASES = {"loader alone": loader_alone, "model alone": model_alone, "predict.py": end_to_end, "transformers": peer}


def ratios_of(small: bool, repeats: int) -> list[Ratio]:
    """End to end beside the slower part alone, and beside transformers."""
    count, seconds = 256 if small else 96, {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SMALL if small else FULL, count)
        for _ in range(repeats):
            for name in CASES:
                one = [sys.executable, __file__, "--one", name, folder]
                done = subprocess.run(one, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
                seconds[name].append(float(done.stdout.splitlines()[-1]))
    rates = {name: count / statistics.median(taken) for name, taken in seconds.items()}
    shown = {name: f"{rate:.1f} pictures/s" for name, rate in rates.items()}
    print(shown, "\n", flush=True)
    ours, slower = rates["predict.py"], min(("loader alone", "model alone"), key=rates.__getitem__)
    what = f"folder to file, {'small model' if small else 'full size'}"
    return [
        at_least(
            what, shown["predict.py"], f"{slower} {shown[slower]}", ours / rates[slower], None if small else LEAST
        ),
        at_least(what, shown["predict.py"], f"transformers {shown['transformers']}", ours / rates["transformers"], 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: a minute")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        case, folder = given.one
        print(CASES[case](Path(folder)))
        return
    print(f"{setting()}\n", flush=True)
    ratios = ratios_of(given.small, 1 if given.small else given.repeats)
    print(ratio_table(ratios))
    sys.exit(publish(ratios))


if __name__ == "__main__":
    main()
