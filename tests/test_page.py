"""The page that captions in the browser: its parts under Node, its making without npm, and all of it in Chromium."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from support import prediction, small_captioner, trained_tokenizer

from captioning.data.batch import PictureFormat
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.export import page
from captioning.export.folder import export
from captioning.model.generation import Greedy
from captioning.model.generation.rules import Ruler
from captioning.model.huggingface import save_model
from captioning.prediction.run import predict

PAGES = ROOT / "captioning" / "pages"


def under_node(script: str, given: bytes) -> bytes:
    """What a module that begins with the page's own gives on standard output."""
    if shutil.which("node") is None:
        pytest.skip("no Node: its package nodejs has it")
    script = re.sub(r'"\./(\w+\.mjs)"', lambda name: f'"{(PAGES / name[1]).as_uri()}"', script)
    command = ["node", "--input-type=module", "--eval", script]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


RESAMPLE = """
import { prepared } from "./pillow.mjs";
import { readFileSync, writeSync } from "node:fs";
const given = readFileSync(0), end = given.indexOf(10);
let offset = end + 1;
for (const [width, height, format] of JSON.parse(given.subarray(0, end))) {
  const pixels = given.subarray(offset, offset += width * height * 3);
  const read = (left, top, wide, high) => {
    const part = new Uint8ClampedArray(wide * high * 4);
    for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) for (let c = 0; c < 3; c++)
      part[(y * wide + x) * 4 + c] = pixels[((top + y) * width + left + x) * 3 + c];
    return part;
  };
  writeSync(1, prepared(width, height, read, format));
}
"""
FORMATS = [
    PictureFormat((64, 48)),
    PictureFormat((48, 40), resize_shortest=60),
    PictureFormat((32, 32), resize_whole=(37, 36)),
    PictureFormat((50, 300), resizes=False),
]
SIZES = [(97, 61), (70, 230), (110, 111), (7, 300), (64, 48), (33, 5), (1, 1), (999, 3)]


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_pictures_are_resized_as_pillow_does_to_the_bit(name):
    formats = [replace(one, resample=name) for one in FORMATS]
    noise = np.random.default_rng(0)
    cases = [
        (Image.fromarray(noise.integers(0, 256, (high, wide, 3), np.uint8)), one)
        for wide, high in SIZES
        for one in formats
    ]
    listed = [[*image.size, asdict(one)] for image, one in cases]
    given = json.dumps(listed).encode() + b"\n" + b"".join(image.tobytes() for image, _ in cases)
    expected = b"".join(EvaluationTransform(one)(image).permute(1, 2, 0).numpy().tobytes() for image, one in cases)
    assert under_node(RESAMPLE, given) == expected


RULED = """
import { decoded } from "./greedy.mjs";
import { readFileSync, writeSync } from "node:fs";
const { logits, rules } = JSON.parse(readFileSync(0));
let step = 0;
const chosen = await decoded(async () => ({ logits: Float32Array.from(logits[step++]), looks: null }), rules);
writeSync(1, JSON.stringify(chosen.map(({ token, logProbability }) => [token, logProbability])));
"""
BOS, EOS = 0, 1


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 0.8},
        {"banned_token_ids": ((3,), (4, 5), (EOS,)), "eos_token_ids": (6,)},
        {"prefix_token_ids": (7, 3, 7), "no_repeat_ngram_size": 2},
    ],
)
def test_tokens_are_chosen_by_the_rules_that_predict_obeys(changed):
    decoding = Greedy(max_new_tokens=30, **changed)
    ruler = Ruler(decoding, BOS, EOS, torch.device("cpu"))
    logits = torch.randn(33, 9, generator=torch.Generator().manual_seed(3)).round(decimals=4)
    logits[:, [EOS, 6]] -= 1.5  # so that captions are longer
    tokens, expected = torch.full((1, 1, decoding.longest), EOS), []
    for step in range(decoding.longest):
        scores = logits[step][None, None]
        token = int(ruler.apply(scores.clone(), tokens, torch.tensor([step])).argmax())
        forced = int(ruler.forced(torch.tensor([step])))
        token = token if forced < 0 else forced
        tokens[0, 0, step] = token
        expected.append([token, pytest.approx(float(logits[step].log_softmax(-1)[token]), abs=1e-6)])
        if token in (EOS, *decoding.eos_token_ids):
            break
    rules = {
        "bos": BOS,
        "ends": [EOS, *decoding.eos_token_ids],
        "max_new_tokens": 30,
        "min_new_tokens": 0,
        "repetition_penalty": decoding.repetition_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        "banned_token_ids": [ids for ids in decoding.banned_token_ids if ids != (EOS,)],
        "prefix_token_ids": decoding.prefix_token_ids,
    }
    found = json.loads(under_node(RULED, json.dumps({"logits": logits.tolist(), "rules": rules}).encode()))
    assert found == expected and len(found) > 4


# ------------------------------------------------------------------------------------------------------ what npm gives


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that gives packages with the contents of a folder, and writes down what it was asked for."""
    contents, asked = tmp_path / "contents" / "package", tmp_path / "asked"
    (contents / "dist").mkdir(parents=True)
    known = {}
    for role, file in page.FILES.items():
        (contents / file.path).write_text(f"of {role}")
        data = (contents / file.path).read_bytes()
        known[role] = file._replace(size_bytes=len(data), sha512=page.digest(data))
    monkeypatch.setattr(page, "FILES", known)
    command = tmp_path / "bin" / "npm"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\necho "$@" >> "{asked}"\nfor last; do :; done\n'
        f'tar -czf "${{last#--pack-destination=}}/package.tgz" -C "{contents.parent}" package\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return contents, asked, command


def test_the_runtime_is_three_files_of_two_packages_kept_for_the_next_export(npm):
    contents, asked, command = npm
    expected = {file.name: (contents / file.path).read_bytes() for file in page.FILES.values()}
    assert page.fetch_runtime() == expected
    lines = asked.read_text().splitlines()
    assert len(lines) == 2 and all(line.startswith("pack ") and " --ignore-scripts " in line for line in lines)
    command.unlink()
    assert page.fetch_runtime() == expected, "from the cache"


def test_a_file_that_is_not_the_known_one_is_refused_and_not_kept(npm):
    contents, asked, _ = npm
    (contents / "dist" / "ort-wasm-simd-threaded.wasm").write_text("another")
    with pytest.raises(UserError, match=r"simd-threaded\.wasm of onnxruntime-web@.* is not the file .*SHA-512 differs"):
        page.fetch_runtime()
    assert not (page.cache_folder() / "ort-wasm-simd-threaded.wasm").exists()
    (contents / "dist" / "ort-wasm-simd-threaded.wasm").write_text("of wasm")
    page.fetch_runtime()
    (page.cache_folder() / "transformers.min.js").write_text("damaged")
    asked.unlink()
    assert page.fetch_runtime()["transformers.min.js"] == b"of library" and len(asked.read_text().splitlines()) == 1


def test_what_npm_cannot_do_is_said_with_the_way_out(npm, monkeypatch, tmp_path):
    _, _, command = npm
    for script, sentence in {
        "echo 'npm error code ENOTFOUND' >&2; exit 1": r"npm did not give @huggingface/transformers@.*: code ENOTFOUND",
        "exit 0": r"npm did not give @huggingface/transformers@\S*: status 0; try again .*page_runtime=cdn",
        'for last; do :; done; echo no > "${last#--pack-destination=}/a.tgz"': "is no whole package: .*; try again",
    }.items():
        command.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(UserError, match=sentence):
            page.fetch_runtime()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"from npm, which is not installed; install Node\.js .* page_runtime=cdn, and"):
        page.fetch_runtime()


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small captioner of random weights, in transformers' format."""
    folder = tmp_path_factory.mktemp("model") / "a model"
    folder.mkdir()
    tokenizer = trained_tokenizer()
    captioner = small_captioner(tokenizer.vocab_size, image_size=32, end_of_text=tokenizer.eos_token_id)
    save_model(captioner, folder, {"max_new_tokens": 12})
    tokenizer.save_pretrained(folder, tokenizer.eos_token_id)
    return folder


@pytest.fixture(scope="module")
def served(model, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The folder with the page, and the address at which a static host has it."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} of captioning[onnx] is not installed")
    try:
        page.fetch_runtime()
    except UserError as error:
        pytest.skip(str(error))
    folder = export(str(model), str(tmp_path_factory.mktemp("page") / "my captioner"), "page=true")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Of many kinds: turned by its metadata, transparent, large, a strip, in grey, with a palette."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)

    def blurred(wide: int, high: int, channels: int = 3) -> Image.Image:
        """Noise, smooth enough for JPEG."""
        small = noise.integers(0, 256, (4, 5, channels), np.uint8)
        return Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[0x0112] = 6
    blurred(90, 60).save(folder / "1 upright.png")
    blurred(640, 427).save(folder / "2 turned.jpg", exif=turned)
    blurred(80, 80, 4).save(folder / "3 transparent.png")
    blurred(3000, 2000).save(folder / "4 large.png")
    blurred(30, 400).save(folder / "5 strip.webp", lossless=True)
    blurred(70, 50).convert("L").save(folder / "6 grey.png")
    blurred(70, 50).convert("P").save(folder / "7 palette.gif")
    return sorted(folder.iterdir())


def captioned(tab, count: int) -> list[str]:
    """The captions, or sentences, of all cards, first given first."""
    tab.locator(".card").nth(count - 1).wait_for()
    tab.locator(".busy").first.wait_for(state="detached")
    return tab.locator(".card .caption, .card .error").all_inner_texts()[::-1]


@pytest.mark.slow
def test_the_page_gives_the_captions_of_predict_and_asks_no_other_host(served, pictures, open_page, tmp_path):
    folder, address = served
    tab = open_page(address)
    tab.set_input_files("#files", pictures)
    found = captioned(tab, len(pictures))
    predict(prediction(folder, pictures[0].parent, tmp_path / "captions.jsonl", "decoding.max_new_tokens=12"))
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert found == [line["caption"] for line in lines] and len(set(found)) > 3
    assert all(url.startswith((address, f"blob:{address}")) for url in tab.requested) and len(tab.requested) > 9
    assert tab.said == []
