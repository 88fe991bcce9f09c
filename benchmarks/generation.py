"""How fast are captions made beside transformers' `generate`, on the same weights in the same process, in fp32?

python benchmarks/generation.py [--small] [REPEATS]

ViT-B/16 at 224 pixels and GPT-2 small with random weights; 16 pictures, exactly 20 tokens, encoding included. Each
repeat runs all sides one after the other; a ratio is that of the two medians. Status 1 if one is below what is wanted.
`--small` runs tiny sizes, to see that it runs; its ratios mean little and are held against nothing.
"""

import argparse
import copy
import sys

import torch
from measuring import Ratio, at_least, interleaved_seconds, publish, ratio_table, setting
from torch import Tensor
from transformers import GPT2Config, VisionEncoderDecoderModel, ViTConfig

from captioning.data.batch import PictureFormat
from captioning.machine import chosen_device
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Beam, Caption, Decoding, Greedy, Sampling, generate
from captioning.model.huggingface import captioner_of, compose
from captioning.prediction.caption import placed

TOKENS, PICTURES = 20, 16
NEVER = -1  # an EOS that no token is, so that no caption ends early


def models_of(small: bool) -> tuple[ImageCaptioner, VisionEncoderDecoderModel]:
    """Ours and transformers' with the same random weights, at full size or with two narrow layers a side.

    Two networks, since ours computes some of its layers in its own way.
    """
    torch.manual_seed(0)
    narrow = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    encoder = ViTConfig(**(narrow | {"image_size": 32} if small else {}))
    shallow = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500} if small else {}
    decoder = GPT2Config(add_cross_attention=True, bos_token_id=0, eos_token_id=None, **shallow)
    size = (encoder.image_size,) * 2
    peer = compose(encoder, decoder).eval()
    peer.generation_config.pad_token_id = 0
    network = copy.deepcopy(peer)
    network.decoder.config.eos_token_id = NEVER  # ours; transformers reads the one of `generation_config`
    return captioner_of(network, PictureFormat(size, mean=(0.5,) * 3, std=(0.5,) * 3)).eval(), peer


def decodings() -> dict[str, tuple[Decoding, dict[str, object]]]:
    """What is compared: our decoding, and the same for transformers."""
    return {
        "greedy": (Greedy(TOKENS), {"do_sample": False}),
        "sampling": (Sampling(TOKENS, 1.0, None, 1.0, seed=0), {"do_sample": True, "top_k": 0}),
        "beam 5": (Beam(TOKENS, 5, 1.0, False, 0, 0, 1), {"num_beams": 5}),
    }


WANTED = {  # (decoding, pictures): how many times as fast at least
    ("greedy", PICTURES): 1.15,
    ("sampling", PICTURES): 1.15,
    ("beam 5", PICTURES): 2.8,
    ("greedy", 1): 1.3,
    ("beam 5", 1): 1.5,
}


def theirs_of(peer: VisionEncoderDecoderModel, pictures: Tensor, settings: dict[str, object]) -> Tensor:
    """transformers' token ids, BOS first."""
    pixels = pictures.float() / 127.5 - 1
    with torch.inference_mode():
        return peer.generate(pixel_values=pixels, max_new_tokens=TOKENS, **settings)


def check(captions: list[Caption], rows: Tensor, name: str) -> None:
    """Both sides write the same 20 tokens, where nothing is drawn."""
    assert all(len(caption.token_ids) == TOKENS for caption in captions) and rows.shape[1] == 1 + TOKENS
    if name != "sampling":
        assert [caption.token_ids for caption in captions] == rows[:, 1:].tolist(), name


def ratios_of(small: bool, repeats: int) -> list[Ratio]:
    """Each decoding and number of pictures beside transformers; on a CPU also in int8."""
    device = chosen_device("auto")
    captioner, peer = models_of(small)
    peer, side, ratios = peer.to(device), captioner.picture_format.size[0], []
    precisions = {"": 32, ", int8": "int8"} if device.type == "cpu" else {"": 32}
    ready = {name: placed(captioner, device, precision) for name, precision in precisions.items()}
    pictures = torch.randint(0, 256, (PICTURES, 3, side, side), dtype=torch.uint8, device=device)
    for (name, count), wanted in WANTED.items():
        decoding, settings = decodings()[name]
        some = pictures[:count]
        check(generate(ready[""], some, decoding), theirs_of(peer, some, settings), name)
        cases = {
            kind: lambda model=model, some=some, decoding=decoding: generate(model, some, decoding)
            for kind, model in ready.items()
        }
        cases["transformers"] = lambda some=some, settings=settings: theirs_of(peer, some, settings)
        seconds = interleaved_seconds(cases, repeats)
        print(name, count, {kind: round(taken, 3) for kind, taken in seconds.items()}, file=sys.stderr, flush=True)
        theirs = seconds["transformers"]
        for kind in ready:
            what, ours = f"{name}{kind}, {count} picture{'s' * (count > 1)}", f"{seconds[kind]:.3f} s"
            held = None if small or kind else wanted
            ratios.append(at_least(what, ours, f"transformers {theirs:.3f} s", theirs / seconds[kind], held))
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, a few seconds")
    parser.add_argument("repeats", nargs="?", type=int, default=5)
    given = parser.parse_args()
    print(f"{setting()}\n{'tiny' if given.small else 'full'} size, fp32, {TOKENS} tokens\n", flush=True)
    found = ratios_of(given.small, given.repeats)
    print(ratio_table(found))
    sys.exit(publish(found))
