"""The page that captions in the browser: its parts under Node, its making without npm, and all of it in Chromium."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import MappingProxyType

import numpy as np
import pytest
import torch
from browser import WAYS, findings, focused
from conftest import ROOT
from PIL import Image
from support import prediction, small_captioner, trained_tokenizer

from captioning.data.batch import PictureFormat
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.export import onnx, page
from captioning.export.folder import export, export_settings
from captioning.model.generation import Greedy
from captioning.model.generation.rules import Ruler
from captioning.model.huggingface import save_model
from captioning.prediction.run import predict
from captioning.prediction.strips import seen_box

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


SEEN = """
import { seenPart } from "./pillow.mjs";
import { readFileSync, writeSync } from "node:fs";
writeSync(1, JSON.stringify(JSON.parse(readFileSync(0)).map((each) => seenPart(...each))));
"""


def test_a_map_is_laid_over_the_part_that_the_model_saw():
    cases = [(wide, high, one) for wide, high in SIZES for one in FORMATS]
    given = json.dumps([(wide, high, asdict(one)) for wide, high, one in cases]).encode()
    for (left, top, across, down), (wide, high, one) in zip(json.loads(under_node(SEEN, given)), cases, strict=True):
        assert (left, top, left + across, top + down) == pytest.approx(seen_box((wide, high), one), abs=0.5)


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


# --------------------------------------------------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def captioner():
    tokenizer = trained_tokenizer()
    return small_captioner(tokenizer.vocab_size, image_size=32, end_of_text=tokenizer.eos_token_id), tokenizer


@pytest.fixture(scope="module")
def model(captioner, tmp_path_factory) -> Path:
    """A small captioner of random weights, in transformers' format."""
    network, tokenizer = captioner
    folder = tmp_path_factory.mktemp("model") / "a model"
    folder.mkdir()
    save_model(network, folder, {"max_new_tokens": 12})
    tokenizer.save_pretrained(folder, tokenizer.eos_token_id)
    return folder


# In transformers.js's place: each caption is SAID, token by token, and looked at is one patch after another.
PRETENDED = """
const said = %s;
export const env = { backends: { onnx: { wasm: {} } } };
export class Tensor { constructor(type, data, dims) { this.ort_tensor = { type, data, dims }; } }
export class PreTrainedTokenizer {
  constructor({ model: { vocab } }) { this.tokens = Object.keys(vocab); }
  decode(ids) { return ids.map((id) => this.tokens[id]).join("").replaceAll("\u0120", " "); }
}
const run = async ({ input_ids }) => {
  const step = said.indexOf(Number(input_ids.data[0])), logits = new Float32Array(%d);
  const looks = new Float32Array(%d);
  logits[said[step + 1]] = 4 + step;
  looks[looks.length - 16 + step] = 1; // 4 x 4 patches, row by row
  return { logits: { data: logits }, cross_attention: { data: looks } };
};
export const AutoModelForVision2Seq = { from_pretrained: async () => ({ sessions: {
  model: { run: async () => ({}) }, decoder_model_merged: { inputNames: [], run },
} }) };
"""
SAID = " a dog runs"


def pretended(captioner, model: Path, folder: Path, title: str = "my <captioner>", **settings) -> Path:
    """A page without a model, that says `SAID` of every picture."""
    network, tokenizer = captioner
    shutil.copytree(model, folder)
    (folder / "onnx").mkdir()
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
        (folder / "onnx" / name).write_bytes(b"a graph")
    ids = tokenizer.encode([SAID])[0]
    words = [tokenizer.bos_token_id, *dict.fromkeys(ids[1:-1]), tokenizer.bos_token_id]
    library = PRETENDED % (words, tokenizer.vocab_size, network.prefix_tokens + 16)
    sizes = {"transformers.min.js": library, "ort-wasm-simd-threaded.mjs": "//", "ort-wasm-simd-threaded.wasm": ""}
    made = page.Page("fp32", {name: text.encode() for name, text in sizes.items()})
    made.of(network, tokenizer, {"max_new_tokens": 12, **settings}, {})
    made.write(folder, title)
    return folder


@pytest.fixture(scope="module")
def folder(captioner, model, tmp_path_factory) -> Path:
    return pretended(captioner, model, tmp_path_factory.mktemp("pretended") / "page")


def policy_of(folder: Path) -> str:
    text = (folder / "index.html").read_text(encoding="utf-8")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', text)
    return policy.replace("&#x27;", "'")


def settings_of(folder: Path) -> dict:
    (text,) = re.findall('id="settings">(.*?)</script>', (folder / "index.html").read_text(encoding="utf-8"))
    return json.loads(text)


def test_the_page_names_its_files_and_lets_nothing_else_in(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    policy = policy_of(folder)
    assert "http" not in policy and "'unsafe" not in policy and policy.startswith("default-src 'none'; ")
    assert "; connect-src 'self' blob:; " in policy and "<title>my &lt;captioner&gt;</title>" in text
    files = settings_of(folder)["files"]
    assert all((folder / name).is_file() for name in files) and len(files) == 9
    assert files["onnx/encoder_model.onnx"] == len(b"a graph")


def test_with_page_runtime_cdn_one_other_host_is_let_in_and_its_files_are_known(captioner, model, tmp_path):
    folder = shutil.copytree(pretended(captioner, model, tmp_path / "page"), tmp_path / "of cdn")
    made = page.planned_page(export_settings(["page=true", "page_runtime=cdn"]))
    made.of(*captioner, {}, {})
    made.write(folder, "my captioner")
    settings = settings_of(folder)
    assert "connect-src 'self' blob: https://cdn.jsdelivr.net;" in policy_of(folder)
    for role, file in page.FILES.items():
        address = f"https://cdn.jsdelivr.net/npm/{file.package}/{file.path}"
        assert settings["runtime"][role] == {"path": address, "integrity": f"sha512-{file.sha512}"}
        assert settings["files"][address] == file.size_bytes


def test_the_runtime_is_that_of_the_tests_under_node():
    locked = json.loads((ROOT / "tests" / "node" / "package-lock.json").read_text())["packages"]
    for package in (page.TRANSFORMERS, page.ONNXRUNTIME):
        name, _, version = package.rpartition("@")
        assert locked[f"node_modules/{name}"]["version"] == version


def test_settings_of_generation_are_obeyed_or_refused(captioner):
    network, tokenizer = captioner
    run = {"banned_words": ["dog"], "eos_token_ids": [7], "prefix": "a man", "num_beams": 3}
    generation = {"max_new_tokens": 99, "num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    rules = page.rules_of(generation, run, *captioner)
    prefix = tokenizer.encode(["a man"])[0][1:-1]
    assert rules["prefix_token_ids"] == prefix and rules["max_new_tokens"] == network.max_positions - 1 - len(prefix)
    assert rules["no_repeat_ngram_size"] == 2 and rules["ends"] == sorted({tokenizer.eos_token_id, 7})
    assert tokenizer.encode([" dog"])[0][1:-1] in rules["banned_token_ids"] and rules["searched"]
    own = {
        "max_length": 13,
        "min_length": 4,
        "repetition_penalty": 1.5,
        "bad_words_ids": [[5], [tokenizer.eos_token_id]],
    }
    rules = page.rules_of(own, {}, *captioner)
    assert (rules["max_new_tokens"], rules["min_new_tokens"], rules["repetition_penalty"]) == (12, 3, 1.5)
    assert rules["banned_token_ids"] == [[5]] and not rules["searched"]
    with pytest.raises(UserError, match=r"have suppress_tokens=\[3\], which the page doesn't obey; take it out of"):
        page.rules_of({"suppress_tokens": [3]}, {}, *captioner)


def test_a_model_too_large_for_a_page_is_refused_with_its_sizes(captioner, folder, monkeypatch):
    page.require_fitting(239_000_000, "fp32")  # a ViT-B and a GPT-2
    page.require_fitting(600_000_000, "q8")
    sizes = r"has 2\.4 GB in float32 and would have 0\.6 GB in int8 \(q8\), .* hold 2\.0; say page_dtype=q8"
    with pytest.raises(UserError, match=sizes):
        page.require_fitting(600_000_000, "fp32")
    with pytest.raises(UserError, match="export a smaller model"):
        page.require_fitting(2_100_000_000, "q8")
    quantized = page.Page("q8", None)
    quantized.of(*captioner, {}, {})
    with pytest.raises(
        UserError, match=r"page_dtype=q8 needs graphs in int8, and too much was lost in those that were"
    ):
        quantized.write(folder, "without")
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UserError, match="page=true: this model has"):
        page.Page("fp32", None).of(*captioner, {}, {})


def test_nothing_is_written_where_there_can_be_no_page(model, tmp_path, npm, monkeypatch):
    npm[2].write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match="npm did not give"):
        export(str(model), str(tmp_path / "a" / "page"), "page=true")
    monkeypatch.setattr(page.Page, "write", lambda *_: 1 / 0)
    monkeypatch.setattr(onnx, "write_onnx", lambda *_: 0)
    with pytest.raises(ZeroDivisionError):
        export(str(model), str(tmp_path / "a" / "page"), "page=true", "page_runtime=cdn")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


# ------------------------------------------------------------------------------------------------------- in a browser


@contextmanager
def host(folder: Path, headers: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """The address at which a static host has a folder, and answers with these headers."""

    def end_headers(self):
        for name, value in headers.items():
            self.send_header(name, value)
        SimpleHTTPRequestHandler.end_headers(self)

    methods = {"log_message": lambda *_: None, "end_headers": end_headers}
    handler = type("Quiet", (SimpleHTTPRequestHandler,), methods)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with host(folder) as address:
        yield address


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
    with host(folder) as address:
        yield folder, address


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


def given(tab, *names: str) -> list[str]:
    """What the cards say of small pictures with these names."""
    picture = BytesIO()
    Image.new("RGB", (60, 40), "teal").save(picture, "PNG")
    files = [{"name": name, "mimeType": "image/png", "buffer": picture.getvalue()} for name in names]
    before = tab.locator(".card").count()
    tab.set_input_files("#files", files)
    return captioned(tab, before + len(names))


def test_a_caption_has_words_with_probabilities_and_its_log_probability(address, open_page):
    tab = open_page(address)
    assert given(tab, "one.png", "two.png") == [SAID.strip()] * 2
    assert tab.locator(".card .name").all_inner_texts() == ["two.png", "one.png"], "the latest first"
    words = tab.locator(".card").first.get_by_role("toolbar", name="Where the model looked, word by word")
    assert words.get_by_role("button", name="a 15% probable, looked at the top left").count() == 1
    assert words.get_by_role("button", name="end ").count() == 1
    assert tab.locator(".card").first.locator("data").get_attribute("value")[:3] == "-0."
    assert tab.inner_text("#status") == "All 2 pictures are captioned." and tab.said == []
    given(tab, "three.png")
    assert tab.inner_text("#status") == f"three.png: {SAID.strip()}"
    with tab.expect_download() as download:
        tab.click("#save")
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [line["path"] for line in lines] == ["one.png", "two.png", "three.png"]
    assert lines[0]["caption"] == SAID.strip()


LEAST_COVERED = """(canvas) => {
  const { width, height } = canvas, { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let best = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] < data[best + 3]) best = i;
  return [Math.floor((best / 4 % width) / width * 4), Math.floor(Math.floor(best / 4 / width) / height * 4)];
}"""


def test_words_are_chosen_by_mouse_and_keyboard_and_the_picture_shows_where_the_model_looked(address, open_page):
    tab = open_page(address)
    given(tab, "one.png")
    word, chosen, canvas = tab.locator(".word"), tab.locator(".word[aria-pressed=true]"), tab.locator("figure canvas")
    word.nth(1).click()
    assert chosen.inner_text().startswith("dog") and canvas.count() == 1
    first = canvas.evaluate(LEAST_COVERED)
    word.nth(1).click()
    assert chosen.count() == canvas.count() == 0, "a second time lets go"
    tab.focus("#camera")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert chosen.inner_text().startswith("dog") and canvas.evaluate(LEAST_COVERED) == first
    tab.keyboard.press("ArrowLeft")
    assert chosen.inner_text().startswith("a") and canvas.evaluate(LEAST_COVERED) == [0, 0]
    tab.keyboard.press("End")
    assert chosen.inner_text().startswith("end") and canvas.evaluate(LEAST_COVERED) != first
    tab.keyboard.press("Escape")
    assert chosen.count() == canvas.count() == 0


GIVE = """([type, kind, name]) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 30, height: 20 });
  canvas.toBlob((blob) => {
    const data = new DataTransfer();
    if (kind === "file") data.items.add(new File([blob], name, { type: "image/png" }));
    else data.setData("text/plain", "a link");
    const event = new Event(type, { bubbles: true, cancelable: true });
    document.body.dispatchEvent(Object.assign(event, { dataTransfer: data, clipboardData: data }));
  });
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted_and_what_is_no_picture_gets_a_sentence(address, open_page, way):
    tab = open_page(address)
    tab.evaluate(GIVE, [way, "text", ""])
    tab.locator("#note").wait_for()
    assert ("picture" in tab.inner_text("#note")) and tab.locator(".card").count() == 0
    tab.evaluate(GIVE, [way, "file", "given.png"])
    assert captioned(tab, 1) == [SAID.strip()] and tab.is_hidden("#note")
    broken = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"}
    tab.set_input_files("#files", broken)
    assert captioned(tab, 2)[1].startswith("No caption: This browser can’t decode it: not a picture, damaged, or")


def test_a_picture_is_taken_with_the_camera_where_there_is_one(address, open_page):
    tab = open_page(address, permissions=["camera"])
    tab.click("#camera")
    tab.locator("#take").wait_for()
    assert focused(tab) == "take"
    tab.keyboard.press("Enter")
    assert captioned(tab, 1) == [SAID.strip()] and tab.inner_text(".card .name") == "camera 1.png"
    tab.click("#stop")
    assert tab.is_hidden("#view") and focused(tab) == "camera" and tab.said == []


NO_CAMERA = """() => {
  navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotFoundError"); };
}"""


def test_without_leave_or_a_camera_a_sentence_says_so(address, open_page):
    tab = open_page(address)
    tab.click("#camera")
    tab.locator("#note").wait_for()
    assert tab.inner_text("#note").startswith("The camera is not allowed here; allow it in") and tab.is_hidden("#view")
    tab.evaluate(NO_CAMERA)
    tab.click("#camera")
    tab.get_by_text("There is no camera; choose a picture instead.").wait_for()


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("WebAssembly.validate = () => false", "lacks the vector instructions (SIMD) that the model needs. Use Chrome"),
        (
            "delete globalThis.WebAssembly",
            "This browser has no WebAssembly, in which the model runs, or it is",
        ),
        ("delete globalThis.OffscreenCanvas", "can’t read pictures in the background (OffscreenCanvas). Use Chrome or"),
    ],
)
def test_a_browser_that_cannot_run_the_model_gets_a_sentence(address, browser, missing, sentence):
    tab = browser.new_page()
    tab.add_init_script(missing)
    tab.goto(address)
    assert sentence in tab.inner_text("#problem") and tab.is_hidden("#give") and tab.is_hidden("#loading")
    tab.context.close()


def test_a_page_opened_as_a_file_or_without_its_files_says_what_to_do(captioner, model, folder, tmp_path, open_page):
    assert "run “python -m http.server”, and open http://localhost:8000." in open_page(
        folder / "index.html"
    ).inner_text("#problem")
    part = pretended(captioner, model, tmp_path / "page")
    (part / "onnx" / "encoder_model.onnx").unlink()
    (part / "tokenizer.json").unlink()
    with host(part) as address:
        tab = open_page(address)
        tab.locator("#problem").wait_for()
        assert tab.inner_text("#problem").endswith(
            "tokenizer.json is not there (404); copy the whole folder to the host."
        )


def test_the_worker_too_may_ask_no_other_host(address, folder, open_page, tmp_path):
    """A worker from a file would be under no policy of the page's."""
    copy = shutil.copytree(folder, tmp_path / "page")
    library = copy / "runtime" / "transformers.min.js"
    elsewhere = address.replace("127.0.0.1", "localhost")
    ask = f"try {{ await fetch('{elsewhere}', {{ mode: 'no-cors' }}); }} catch {{ throw new Error('held back'); }}\n"
    library.write_text(ask + library.read_text())
    with host(copy) as another:
        tab = open_page(another)
        tab.locator("#problem").wait_for()
        assert "held back" in tab.inner_text("#problem")


@pytest.mark.parametrize("way", WAYS)
def test_axe_finds_nothing_serious_and_it_fits_a_phone(address, folder, open_page, way):
    tab = open_page(address, **WAYS[way])
    assert findings(tab if "phone" in way else open_page(folder / "index.html", **WAYS[way])) == []
    given(tab, "a picture with a long name that somebody gave it, and that goes on.png")
    tab.set_input_files("#files", {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    captioned(tab, 2)
    tab.locator(".word").nth(1).click()
    assert findings(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= WAYS[way]["viewport"]["width"]


@pytest.mark.slow
def test_with_page_runtime_cdn_the_runtime_comes_from_there_and_no_other_file_passes(
    served, captioner, pictures, open_page, tmp_path, monkeypatch
):
    cdn, folder = tmp_path / "cdn", tmp_path / "page"
    shutil.copytree(served[0], folder, ignore=shutil.ignore_patterns("runtime"))
    for file in page.FILES.values():
        path = cdn / "npm" / file.package / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page.fetch_runtime()[file.name])
    with host(cdn, {"Access-Control-Allow-Origin": "*"}) as there, host(folder) as address:
        monkeypatch.setattr(page, "CDN", there.rstrip("/"))
        made = page.planned_page(export_settings(["page=true", "page_runtime=cdn"]))
        made.of(*captioner, {"max_new_tokens": 12}, {})
        made.write(folder, "my captioner")
        tab = open_page(address)
        tab.set_input_files("#files", pictures[:1])
        assert not captioned(tab, 1)[0].startswith("No caption") and tab.said == []
        assert sorted(url for url in tab.requested if url.startswith(there)) == sorted(
            file.address for file in page.FILES.values()
        )
        path.write_bytes(b"another")
        tab = open_page(address)
        tab.locator("#problem").wait_for()
        assert "can't be fetched, or is not what this page was made with" in tab.inner_text("#problem")
