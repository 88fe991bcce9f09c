"""`docs/captions.png`, `curves.png`, `page.png`: the demo's model on drawings it has never seen, and how it learned.

    python docs/make_pictures.py [RUN_DIR]     # a run of experiment=demo; without one it is trained first

The page is looked at in Chromium (CHROMIUM names another browser), with a word chosen: see `CHOSEN`.

The drawings are chosen by their number, one each of one, two and three shapes; nothing else is.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from captioning.prediction.strips import COLUMNS, GAP, LABEL, PANEL
from captioning.runs import logged_rows
from captioning.training.curves import OVER, draw_panel, panels_in, switches

DOCS = Path(__file__).parent
DRAWINGS = [f"shapes-test-seed42-{1_000_000 + number}.png" for number in (0, 5, 7)]
WIDTH = 1350  # pixels, half as many again as GitHub shows of a picture
SPACE, WORD, FONT_SIZE = 9, 34, 19  # pixels between panels, under each for its word, and of its letters
PAPER, INK, EDGE = "white", "#202124", "#d0d4d9"
CHOSEN = "square"  # a word of the caption on the page


def main() -> None:
    """Make the pictures of the run named on the command line, or of a new one."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "run")
        if len(sys.argv) == 1:
            python("train.py", "experiment=demo", "logger=csv", f"run_dir={run}")
        captions = captioned(run, Path(folder))
        strips = [Image.open(Path(folder, "captions.heat_maps", name)) for name in DRAWINGS]
        rows = [
            list(zip(panels_of(strip), ["", *words], strict=False))
            for strip, words in zip(strips, captions, strict=True)
        ]
        with_few_colours(sheet(rows)).save(DOCS / "captions.png", optimize=True)
        draw_curves(logged_rows(run), DOCS / "curves.png")
        look_at_page(run, Path(folder), DOCS / "page.png")


def python(*command: str) -> None:
    """Run what a user would type, in the repository's root."""
    subprocess.run([sys.executable, *command], cwd=DOCS.parent, check=True)


def captioned(run: Path, folder: Path) -> list[list[str]]:
    """The words of each drawing's caption; heat maps lie in the folder then."""
    python("-m", "captioning.shapes", "draw", str(folder / "drawings"))
    inputs, names = f"input={folder / 'drawings'}", f"heat_maps=[{','.join(DRAWINGS)}]"
    python(
        "predict.py", f"checkpoint={run}", inputs, f"output={folder / 'captions.jsonl'}", names, "heat_maps_layers=1"
    )
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    by_name = {Path(line["path"]).name: line["caption"].split() for line in lines}
    return [by_name[name] for name in DRAWINGS]


def look_at_page(run: Path, folder: Path, path: Path) -> None:
    """The page that captions in the browser, given a drawing, with a word chosen."""
    python("-m", "captioning.export", str(run), str(folder / "captioner"), "page=true")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder / "captioner")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 980, "height": 760}, device_scale_factor=WIDTH / 980)
            page.goto(f"http://127.0.0.1:{server.server_port}")
            page.locator("#files").set_input_files(folder / "drawings" / DRAWINGS[1])
            page.locator(".word", has_text=CHOSEN).click()
            page.mouse.move(0, 0)
            page.screenshot(path=folder / "page.png", full_page=True)
            browser.close()
        server.shutdown()
    with Image.open(folder / "page.png") as picture:
        picture.convert("RGB").quantize(256, kmeans=4).save(path, optimize=True)


def panels_of(strip: Image.Image) -> list[Image.Image]:
    """The panels of a square drawing's strip without their words: the drawing, then one for each word."""
    step = PANEL + GAP, PANEL + LABEL
    places = [(GAP + x * step[0], GAP + y * step[1]) for y in range(strip.height // step[1]) for x in range(COLUMNS)]
    return [strip.crop((x, y, x + PANEL, y + PANEL)) for x, y in places if x < strip.width]


def draw_curves(rows: list[dict[str, str]], path: Path) -> None:
    """The panels of a run's `curves.png` beside each other."""
    panels = panels_in(rows)
    figure = Figure(figsize=(3 * len(panels), 2.6), dpi=180, layout="constrained")
    for ax, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        legend = OVER | {"fontsize": 5.5, "ncols": 2, "columnspacing": 1, "handlelength": 1.4}
        draw_panel(ax, title, curves, [step for step, _ in switches(rows)], legend)
        ax.set_xlabel("optimizer step")
    figure.savefig(path, format="png")


def sheet(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """A line of panels for each drawing, each panel with its word under it."""
    size = (WIDTH - SPACE) // max(len(row) for row in rows) - SPACE
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)
    page = Image.new("RGB", (WIDTH, SPACE + len(rows) * (size + WORD)), PAPER)
    draw = ImageDraw.Draw(page)
    for line, row in enumerate(rows):
        for column, (panel, word) in enumerate(row):
            left, top = SPACE + column * (size + SPACE), SPACE + line * (size + WORD)
            page.paste(panel.resize((size, size), Image.Resampling.LANCZOS), (left, top))
            draw.rectangle((left - 1, top - 1, left + size, top + size), outline=EDGE)
            draw.text((left + size / 2, top + size + WORD / 2 - 2), word, INK, font, anchor="mm")
    return page


def with_few_colours(page: Image.Image) -> Image.Image:
    """In 256 colours, one of them the paper's: half the bytes."""
    page = page.quantize(palette=page.quantize(256, kmeans=4))
    colours, paper = page.getpalette(), page.getpixel((0, 0))
    colours[3 * paper : 3 * paper + 3] = [255, 255, 255]
    page.putpalette(colours)
    return page


if __name__ == "__main__":
    main()
