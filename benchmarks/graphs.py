"""How fast and how large are ONNX graphs beside our own captioner and transformers' `generate`, on a CPU?

python benchmarks/graphs.py [--small] [--graphs FOLDER] [REPEATS]

ViT-B/16 at 224 pixels and GPT-2 small with random weights, as in generation.py; one picture, greedily, exactly 20
tokens, encoding included. ONNX Runtime runs the graphs of `python -m captioning.export ... onnx=true`, in float32 and
with the first settings of int8. Making them takes a minute or two; `--graphs` keeps them for the next time. Nothing is
held against a bound. `--small` runs tiny sizes, to see that it runs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from generation import NEVER, TOKENS, check, decodings, models_of, theirs_of
from measuring import Ratio, at_least, interleaved_seconds, publish, ratio_table, setting
from transformers import VisionEncoderDecoderModel

from captioning.cli import quiet_libraries
from captioning.export.int8 import WAYS, write_int8
from captioning.export.onnx import DECODER, ENCODER, QUANTIZED, OnnxCaptioner, write_onnx
from captioning.model.generation import generate
from captioning.prediction.caption import placed

PRECISIONS: dict[str, int | str] = {"": 32, " int8": "int8"}


def written(peer: VisionEncoderDecoderModel, folder: Path) -> Path:
    """The graphs of a model, made in `folder` if they aren't there."""
    graphs = folder / "onnx"
    if not graphs.exists():
        peer.save_pretrained(folder)
        print(f"logits within {write_onnx(folder, graphs, 18):.1e} of torch's", file=sys.stderr)
        write_int8(graphs, next(iter(WAYS.values())))
    for suffix in ("", QUANTIZED):
        sizes = [(graphs / f"{half}{suffix}.onnx").stat().st_size / 1e6 for half in (ENCODER, DECODER)]
        print(f"{'int8' if suffix else 'float32'}: encoder {sizes[0]:.1f} MB, decoder {sizes[1]:.1f} MB", flush=True)
    return graphs


def ratios_of(small: bool, repeats: int, folder: Path) -> list[Ratio]:
    """ONNX Runtime, ours and transformers' in turns; the seconds of each beside transformers'."""
    captioner, peer = models_of(small)
    graphs = written(peer, folder)
    runtime = {"": OnnxCaptioner(graphs), " int8": OnnxCaptioner(graphs, QUANTIZED)}
    ready = {name: placed(captioner, torch.device("cpu"), precision) for name, precision in PRECISIONS.items()}
    side = captioner.picture_format.size[0]
    picture = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    pixels = (picture.numpy() / np.float32(127.5) - 1).astype(np.float32)
    greedy, settings = decodings()["greedy"]
    bos = peer.config.decoder.bos_token_id
    ours = generate(ready[""], picture, greedy)
    check(ours, theirs_of(peer, picture, settings), "greedy")
    assert runtime[""].greedy(pixels, bos, NEVER, TOKENS) == [list(ours[0].token_ids)]
    cases = {"transformers": lambda: theirs_of(peer, picture, settings)}
    cases |= {f"ours{name}": lambda model=model: generate(model, picture, greedy) for name, model in ready.items()}
    cases |= {
        f"ONNX Runtime{name}": lambda model=model: model.greedy(pixels, bos, NEVER, TOKENS)
        for name, model in runtime.items()
    }
    seconds = interleaved_seconds(cases, repeats)
    theirs = seconds.pop("transformers")
    beside = f"transformers {theirs:.3f} s"
    return [at_least(f"greedy, {name}", f"{took:.3f} s", beside, theirs / took, None) for name, took in seconds.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, a few seconds")
    parser.add_argument("--graphs", type=Path, metavar="FOLDER", help="where the graphs lie, or are made to stay")
    parser.add_argument("repeats", nargs="?", type=int, default=5)
    given = parser.parse_args()
    quiet_libraries()
    print(setting(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        found = ratios_of(given.small, given.repeats, given.graphs or Path(temporary) / "model")
    print(f"\n{ratio_table(found)}")
    sys.exit(publish(found))
