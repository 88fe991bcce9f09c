"""A page that captions in the browser: `index.html` beside the model, and the runtime that it needs.

Template, look and scripts are those of captioning/pages. The runtime, transformers.js with ONNX Runtime for
WebAssembly, is three files of two packages of npm, each known by its SHA-512: they are copied into the folder
(`page_runtime=npm`), or the page fetches them when it is opened (`cdn`).
"""

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from captioning.config import ExportConfig
from captioning.errors import UserError
from captioning.files import atomic_file, readable
from captioning.pages import fill, joined_modules, whole_page

log = logging.getLogger(__name__)

PAGE, RUNTIME = "index.html", "runtime"  # in the folder
# Bytes of graphs: a browser's WebAssembly has 4 GB at most, and a session holds its weights about twice as it starts.
LARGEST = 2e9
CDN = "https://cdn.jsdelivr.net"


class RuntimeFile(NamedTuple):
    """A file of a package of npm."""

    package: str  # with its version
    path: str  # in the package
    size_bytes: int
    sha512: str  # in base64

    @property
    def name(self) -> str:
        """Without its folders."""
        return Path(self.path).name

    @property
    def address(self) -> str:
        """Where jsDelivr gives it to everybody."""
        return f"{CDN}/npm/{self.package}/{self.path}"

    def holds(self, data: bytes) -> bool:
        """Whether these are its bytes."""
        return digest(data) == self.sha512


def digest(data: bytes) -> str:
    """Their SHA-512 in base64, as npm and browsers write it."""
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


# The versions that tests/node/package-lock.json has. transformers.js brings the scripts of this very onnxruntime-web.
TRANSFORMERS = "@huggingface/transformers@4.3.2"
ONNXRUNTIME = "onnxruntime-web@1.31.0-dev.20260914-8d85527a0"
FILES = {
    "library": RuntimeFile(
        *(TRANSFORMERS, "dist/transformers.min.js", 587_917),
        "kObyWsGjPUnrJ29O0fE8fIvXpCF6n0Qa/iFuzw0PdEtuLUR1Ng0/A7vLzsEQiFu8nWP8zsWfSF/OJhiaGhvaMA==",
    ),
    "loader": RuntimeFile(
        *(ONNXRUNTIME, "dist/ort-wasm-simd-threaded.mjs", 24_381),
        "tyatUxCQaEGWC8jRwJiWqVjFYbzCanCglggnCJistxZCyP4/fnO1PWE5qEF6bNbx+SzLEfPlb8Pbxwjz/LXg0A==",
    ),
    "wasm": RuntimeFile(
        *(ONNXRUNTIME, "dist/ort-wasm-simd-threaded.wasm", 14_264_838),
        "ZZPPMeCwTOAhv38fSlkXC60xycdYbaCsWSWZZb1SA0yDB87M6QIAzsUshtAyP/4+sRZxsDDZEfzcQqPpXnLcUQ==",
    ),
}


def fetch_runtime() -> dict[str, bytes]:
    """The runtime's files by name, from the cache or else from npm.

    Raises:
        UserError: if npm is not installed, gives no package, or a file is not the one that is known here.
    """
    folder = cache_folder()
    found = {file.name: _cached(folder / file.name, file) for file in FILES.values()}
    for package in dict.fromkeys(file.package for file in FILES.values() if found[file.name] is None):
        for file, data in _packed(package).items():
            with atomic_file(folder / file.name) as cached:
                cached.write(data)
            found[file.name] = data
    return {name: data for name, data in found.items() if data is not None}


def cache_folder() -> Path:
    """Where the runtime's files are kept from one export to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "captioning" / "page"


def _cached(path: Path, file: RuntimeFile) -> bytes | None:
    data = path.read_bytes() if path.is_file() else b""
    return data if file.holds(data) else None


def _packed(package: str) -> dict[RuntimeFile, bytes]:
    """What the page needs of a package, which npm fetches without installing it or running anything of it."""
    npm, cdn = shutil.which("npm"), "or say page_runtime=cdn, and the page fetches it from cdn.jsdelivr.net when opened"
    if npm is None:
        raise UserError(
            f"page=true takes the page's runtime from npm, which is not installed; install Node.js with npm, {cdn}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error", f"--pack-destination={folder}"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        archives = list(Path(folder).glob("*.tgz"))
        if ended.returncode or len(archives) != 1:
            said = " ".join(ended.stderr.replace("npm error", "").split())[:200] or f"status {ended.returncode}"
            raise UserError(f"page=true: npm did not give {package}: {said}; try again with a network, {cdn}")
        return _files_of(archives[0], package)


def _files_of(archive: Path, package: str) -> dict[RuntimeFile, bytes]:
    wanted = {f"package/{file.path}": file for file in FILES.values() if file.package == package}
    found: dict[RuntimeFile, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                if member.name in wanted and member.isfile():
                    content = members.extractfile(member)
                    found[wanted[member.name]] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"page=true: what npm gave as {package} is no whole package: {reason}; try again") from error
    for file in wanted.values():
        if not file.holds(found.get(file, b"")):
            raise UserError(
                f"page=true: {file.path} of {package} from npm is not the file that this page was made for (its "
                "SHA-512 differs), so nothing was written; look at which registry `npm config get registry` names"
            )
    return found


def planned_page(config: ExportConfig) -> "Page":
    """The page that the keys ask for, with its runtime at hand; raises what `fetch_runtime` does."""
    return Page(config.page_dtype, fetch_runtime() if config.page_runtime == "npm" else None)


class Page:
    """The page of one captioner.

    Args:
        dtype: of its graphs, `fp32` or `q8`.
        runtime: of `fetch_runtime`; None lets the page fetch it.
    """

    def __init__(self, dtype: str, runtime: Mapping[str, bytes] | None):
        self.dtype, self._runtime = dtype, runtime

    def of(self, captioner: Any, tokenizer: Any, generation: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Look whether there can be one, of this captioner with these generation settings, see `rules_of`.

        Raises:
            UserError: if it is too large, or its settings ask for what the page doesn't obey.
        """
        require_fitting(sum(weight.numel() for weight in captioner.parameters()), self.dtype)
        self._captioner, self._rules = captioner, rules_of(generation, run, captioner, tokenizer)

    def write(self, folder: Path, title: str) -> None:
        """Add `index.html` and the runtime to a folder that holds the model with its graphs.

        Raises:
            UserError: if there are no such graphs.
        """
        from captioning.export.onnx import DECODER, ENCODER, QUANTIZED  # which takes a second

        graphs = [f"onnx/{half}{QUANTIZED * (self.dtype == 'q8')}.onnx" for half in (ENCODER, DECODER)]
        if self.dtype == "q8" and not (folder / graphs[0]).is_file():
            raise UserError(
                "page_dtype=q8 needs graphs in int8, and too much was lost in those that were tried; leave it out, or "
                "take them as they are by onnx_int8=unjudged"
            )
        if self._runtime is not None:
            (folder / RUNTIME).mkdir()
            for name, data in self._runtime.items():
                (folder / RUNTIME / name).write_bytes(data)
        settings = self._settings(folder, graphs)
        megabytes = sum(settings["files"][name] for name in graphs) / 1e6
        values = {
            "TITLE": escape(title),
            "MODEL": f"runs in this browser: {megabytes:,.1f} MB in {'int8 (q8)' if self.dtype == 'q8' else 'float32'}",
            "NOTES": NOTES + SEARCHED * self._rules["searched"],
            "SETTINGS": json.dumps(settings).replace("<", r"\u003c"),
            "WORKER": joined_modules("greedy.mjs", "pillow.mjs", "captioner_worker.mjs"),
        }
        host = f" {CDN}" * (self._runtime is None)
        policy = {
            "img-src": "blob:",
            "script-src": "blob: 'wasm-unsafe-eval'",
            "worker-src": "blob:",
            "connect-src": f"'self' blob:{host}",
        }
        (folder / PAGE).write_text(fill(whole_page("captioner", policy), values), encoding="utf-8")

    def _settings(self, folder: Path, graphs: list[str]) -> dict[str, Any]:
        """What the page's scripts know of the model."""
        model = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *graphs]
        runtime = {
            role: {"path": file.address, "integrity": f"sha512-{file.sha512}"}
            if self._runtime is None
            else {"path": f"{RUNTIME}/{file.name}"}
            for role, file in FILES.items()
        }
        picture_format, decoder = self._captioner.picture_format, self._captioner.network.config.decoder
        return {
            "files": {runtime[role]["path"]: file.size_bytes for role, file in FILES.items()}
            | {name: (folder / name).stat().st_size for name in model},
            "runtime": runtime,
            "dtype": self.dtype,
            "format": asdict(picture_format),
            "grid": self._captioner.patch_grid(picture_format.size),
            "prefix_tokens": self._captioner.prefix_tokens,
            "heads": decoder.num_attention_heads,
            "head_width": decoder.hidden_size // decoder.num_attention_heads,
            "rules": self._rules,
        }


NOTES = (
    "A word’s number is its probability, given the picture and the words before it. log p is a caption’s mean "
    "log-probability per token (natural logarithm, end included)."
)
SEARCHED = " Captions are greedy here, whatever beams or sampling the model was set to."


def require_fitting(parameters: int, dtype: str) -> None:
    """Raise UserError if a model of so many parameters is too large for a page."""
    large, small = parameters * 4 / 1e9, parameters / 1e9  # GB, in float32 and in int8
    if (small if dtype == "q8" else large) * 1e9 > LARGEST:
        way_out = "say page_dtype=q8" if small * 1e9 <= LARGEST else "leave page=true out, or export a smaller model"
        raise UserError(
            f"page=true: this model has {large:.1f} GB in float32 and would have {small:.1f} GB in int8 (q8), and the "
            f"4 GB of a browser's WebAssembly hold {LARGEST / 1e9:.1f}; {way_out}"
        )


SEARCH = re.compile(  # of transformers' settings, what greedy decoding has no use for
    r"do_sample|num_beams|num_beam_groups|early_stopping|length_penalty|diversity_penalty|num_return_sequences|temperature"
    r"|top_[kph]|min_p|typical_p|epsilon_cutoff|eta_cutoff"
)


def rules_of(
    generation: Mapping[str, Any], decoding: Mapping[str, Any], captioner: Any, tokenizer: Any
) -> dict[str, Any]:
    """What the page's greedy decoding obeys.

    Args:
        generation: the folder's generation settings, in transformers' words.
        decoding: the run's, of which `banned_words`, `eos_token_ids` and `prefix` are said in no other place.
        captioner: whose folder it is.
        tokenizer: its own.

    Raises:
        UserError: for a setting that the page doesn't obey.
    """
    from captioning.model.generation import Greedy, in_tokens

    limit, (bos, eos) = captioner.max_positions - 1, captioner.end_of_text
    texts = {key: decoding[key] for key in ("banned_words", "eos_token_ids", "prefix") if decoding.get(key)}
    words: Any = in_tokens(Greedy(max_new_tokens=1, **texts), tokenizer.encode, captioner.vocab_size)
    left = {key: value for key, value in generation.items() if not SEARCH.fullmatch(key)}
    banned = [list(ids) for ids in (*words.banned_token_ids, *left.pop("bad_words_ids", ())) if list(ids) != [eos]]
    most = left.pop("max_new_tokens", left.pop("max_length", 41) - 1)
    rules = {
        "bos": bos,
        "ends": sorted({eos, *words.eos_token_ids}),
        "max_new_tokens": min(most, limit - len(words.prefix_token_ids)),
        "min_new_tokens": left.pop("min_new_tokens", left.pop("min_length", 1) - 1),
        "repetition_penalty": left.pop("repetition_penalty", 1),
        "no_repeat_ngram_size": left.pop("no_repeat_ngram_size", 0),
        "banned_token_ids": banned,
        "prefix_token_ids": list(words.prefix_token_ids),
        "searched": generation.get("num_beams", 1) > 1 or bool(generation.get("do_sample")),
    }
    if left:
        key, value = next(iter(left.items()))
        raise UserError(
            f"page=true: the model's generation settings have {key}={value}, which the page doesn't obey; take it out "
            "of its generation_config.json, of a local copy if it is on the hub, or leave page=true out"
        )
    return rules


def opening(folder: Path) -> str:
    """How the page is opened, as one types it."""
    return f"python -m http.server --directory {readable(folder)} --bind 127.0.0.1 8000, then http://127.0.0.1:8000"
