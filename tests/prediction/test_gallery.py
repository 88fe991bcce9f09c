"""The page of pictures and captions: as a file, and as people meet it in a browser."""

import math
import os
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browser import WAYS, findings, focused
from PIL import Image

from captioning.errors import UserError
from captioning.prediction.journal import CaptionedPicture, May
from captioning.prediction.outputs.gallery import SIDE, Gallery, card, gallery_path, score_values, thumbnail

HOSTILE = '</script><script>document.title = "taken over"</script><img src=x onerror="document.title=1">'


def picture(number: int = 0) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return thumbnail(Image.fromarray(noise).resize((80, 60)))


def shown(place: int, path: str, caption: str | None = None, log_probability: float = math.nan, **known):
    """A captioned picture; with an error it has no thumbnail."""
    known = {"thumbnail": None if "error" in known else picture(place), **known}
    return CaptionedPicture(place, path, caption=caption, log_probability=log_probability, **known)


def pictures() -> list[CaptionedPicture]:
    strip = Image.new("RGB", (1200, 230), "orange")
    return [
        shown(0, "a/1.jpg", "a dog", -0.5, references=["The Dog runs"]),
        shown(1, "a/2.jpg", "a café", -0.1, alternatives=[("a bar", -0.3)]),
        shown(2, "a/3.jpg", "a cat", -2.25, heat_map=strip),
        shown(3, "b/4.jpg", error="truncated JPEG"),
        shown(4, "b/<5>.jpg", HOSTILE, -1.0, references=[HOSTILE]),
    ]


SCORES = {0: {"CIDEr": 0.2}, 1: {"CIDEr": 1.5}, 2: {"CIDEr": 0.9}}


def written(path: Path, given: list[CaptionedPicture], scores=SCORES, **may) -> Path:
    with Gallery(path, may=May(**may)) as gallery:
        for one in given:
            gallery.add(one)
        gallery.add_scores(scores)
        gallery.finish()
    return path


class Elements(HTMLParser):
    """The attributes of all elements of a page, by tag."""

    def __init__(self, text: str):
        super().__init__()
        self.found: dict[str, list[dict]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_in_the_page_comes_from_elsewhere(tmp_path):
    text = written(tmp_path / "captions.html", pictures()).read_text(encoding="utf-8")
    elements = Elements(text).found
    assert all(image["src"].startswith("data:image/webp;base64,") for image in elements["img"])
    assert len(elements["img"]) == 5 and len(elements["script"]) == len(elements["style"]) == 1
    assert [link["href"] for link in elements["link"]] == ["data:,"]
    assert not re.search(r"https?://|@import|url\(", text)
    policy = elements["meta"][1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert not any(name.startswith("on") or name == "style" for kind in elements.values() for e in kind for name in e)


def test_every_text_from_outside_stays_text(tmp_path):
    path = tmp_path / "<script>.html"
    hostile = {"references": [HOSTILE], "alternatives": [(HOSTILE, -1.0)]}
    given = [
        shown(0, '"><b>.jpg', HOSTILE, -1.0, **hostile),
        shown(1, "x.jpg", error=HOSTILE),
        shown(2, "y.jpg", "%CARDS% %TITLE% %COUNT%", -1.0, thumbnail=None),
    ]
    text = written(path, given, {2: {HOSTILE: 1.0}}).read_text(encoding="utf-8")
    elements = Elements(text).found
    assert (len(elements["script"]), len(elements["img"]), len(elements["title"])) == (1, 1, 1)
    assert "<b>.jpg" not in text and not any("onerror" in image for image in elements["img"])
    assert "%CARDS% %TITLE% %COUNT%</p>" in text


def test_a_file_name_that_is_no_utf_8_is_shown_as_well_as_can_be(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    text = written(tmp_path / "captions.html", [shown(0, name, "a", -1.0)]).read_text(encoding="utf-8")
    assert "caf?.jpg" in text


def test_cards_stand_by_their_places_with_scores_that_come_last(tmp_path):
    given = [shown(place, f"{place}.jpg", f"caption {place}", -1.0) for place in (2, 0, 1)]
    path = written(tmp_path / "captions.html", given, {1: {"CIDEr": 0.5, "BLEU-4": float("nan")}})
    elements = Elements(path.read_text(encoding="utf-8")).found
    assert [card["data-place"] for card in elements["li"]] == ["0", "1", "2"]
    keys = [data["data-key"] for data in elements["data"]]
    assert keys == ["log-probability", "log-probability", "CIDEr", "log-probability"]


def test_an_interrupted_page_leaves_nothing_and_what_was_there_before(tmp_path):
    path = tmp_path / "captions.html"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), Gallery(path, may=May(overwrite=True)) as gallery:
        gallery.add(pictures()[3])
        raise ZeroDivisionError
    assert path.read_text() == "before" and listing(tmp_path) == {"captions.html"}


def test_a_page_that_exists_is_refused_before_and_at_the_end(tmp_path):
    path = tmp_path / "captions.html"
    with pytest.raises(UserError, match=r"exists already; replace it with overwrite=true"), Gallery(path) as gallery:
        path.write_text("another program's")
        gallery.finish()
    assert path.read_text() == "another program's"
    with pytest.raises(UserError, match=rf"^gallery={path}: {path} exists already; replace it with overwrite=true"):
        Gallery(path)
    with pytest.raises(UserError, match=r"is a folder; name a file, for example .*captions\.html"):
        Gallery(tmp_path, may=May(overwrite=True))


def test_with_resume_a_page_stays_if_it_holds_the_same(tmp_path):
    path = tmp_path / "captions.html"
    (tmp_path / ".captions.html.17.tmp").touch()
    for resume in (False, True):
        written(path, pictures()[3:4], {}, resume=resume)
    path.write_text("mine")
    with pytest.raises(
        UserError, match=rf"^gallery={path}: {path} exists already and holds something else; replace it"
    ):
        written(path, pictures()[3:4], {}, resume=True)
    assert path.read_text() == "mine" and listing(tmp_path) == {"captions.html"}


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    import tracemalloc

    small = picture() + b"\0" * 8000
    tracemalloc.start()
    written(tmp_path / "captions.html", (shown(n, "1.jpg", "a", -1.0, thumbnail=small) for n in range(1000)), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "captions.html").stat().st_size > 10e6 and peak < 4e6


# --------------------------------------------------------------------------------------------------------- its pieces


def test_a_picture_that_could_not_be_read_has_a_placeholder():
    html = "".join(card(shown(0, "1.jpg", error="empty file")))
    assert 'role="img" aria-label="no picture: empty file"' in html and "<img" not in html


def test_scores_go_between_the_two_parts():
    before, after = card(shown(7, "in/1.jpg", "a <b> & c", -0.5, references=["r"], alternatives=[("n", -2.0)]))
    html = before + score_values({"CIDEr": 0.25}) + after
    (numbers,) = re.findall('<p class="numbers">(.*?)</p>', html)
    assert re.findall('data-key="(.*?)" value="(.*?)"', numbers) == [("log-probability", "-0.5"), ("CIDEr", "0.25")]
    assert "a &lt;b&gt; &amp; c</p>" in html and "1 reference<" in html and "The 1 best<" in html
    assert 'width="80" height="60"' in html and 'alt="picture 1.jpg"' in html
    assert html.startswith('<li class="card" tabindex="-1" data-place="7" aria-labelledby="caption-7">')


def test_what_is_no_number_is_not_shown_as_one():
    assert score_values({"CIDEr": math.nan}) == ""
    before, _ = card(shown(0, "1.jpg", "a", -math.inf))
    assert before.endswith('<p class="numbers">')


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 960), (120, 240)), ((30, 20), (30, 20)), ((10_000, 10), (80, 10)), ((1, 1), (1, 1)), ((3000, 3), (24, 3))],
)
def test_the_longer_side_is_bounded_and_a_long_strip_shows_its_middle(size, expected):
    with Image.open(BytesIO(thumbnail(Image.new("RGB", size, "red")))) as small:
        assert small.format == "WEBP" and max(small.size) <= SIDE
        assert small.size == expected


def test_nothing_of_the_photographs_own_file_is_carried_along():
    photograph = Image.new("RGB", (300, 300))
    photograph.info |= {"exif": b"Exif\0\0" + b"home address", "icc_profile": b"home address", "xmp": b"home address"}
    assert b"home address" not in thumbnail(photograph)


def test_a_page_is_beside_the_output_or_where_the_key_says():
    output = Path("there/captions.jsonl")
    assert [gallery_path(wanted, output) for wanted in (False, None)] == [None, None]
    assert gallery_path(True, output) == Path("there/captions.html")
    assert gallery_path(True, Path("there/captions.csv")) == Path("there/captions.csv.html")
    assert gallery_path("my page.html", output) == Path("my page.html")
    with pytest.raises(UserError, match=r"^gallery=there/captions.jsonl is the output too; name another file with"):
        gallery_path("there/captions.jsonl", output)


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("gallery") / "my captions.html", pictures())


@pytest.fixture
def opened(open_page, file):
    """Opens the page of `pictures`, or another."""
    return lambda path=file, **settings: open_page(path, **settings)


def names(tab) -> list[str]:
    return [name.split(".")[0] for name in tab.locator(".card .name").all_inner_texts()]


def test_the_browser_shows_all_cards_and_asks_for_nothing(opened, file):
    tab = opened()
    assert names(tab) == ["1", "2", "3", "4", "<5>"]
    assert [url for url in tab.requested if not url.startswith("data:")] == [file.as_uri()]
    assert tab.said == [] and tab.title() == "my captions"
    assert tab.locator(".card").nth(4).locator(".caption").inner_text() == HOSTILE
    assert "No caption: truncated JPEG" in tab.locator(".card").nth(3).inner_text()
    tab.wait_for_function("Array.from(document.querySelectorAll('.picture img')).every(i => i.naturalWidth === 80)")


def test_cards_are_sorted_by_score_and_log_probability_either_way(opened):
    tab = opened()
    tab.select_option("#sort", "CIDEr")
    assert names(tab) == ["2", "3", "1", "4", "<5>"]  # what has no score is last
    tab.click("#direction")
    assert names(tab) == ["1", "3", "2", "4", "<5>"]
    tab.select_option("#sort", "log-probability")
    assert names(tab) == ["2", "1", "<5>", "3", "4"]
    tab.select_option("#sort", "")
    assert names(tab) == ["1", "2", "3", "4", "<5>"]


def test_search_finds_captions_references_files_and_reasons(opened):
    tab = opened()
    found = {"dog": ["1"], "THE runs": ["1"], "bar": ["2"], "CAFÉ": ["2"], "b/": ["4", "<5>"], "truncated": ["4"]}
    for typed, left in found.items():
        tab.fill("#search", typed)
        assert names(tab) == left
        assert tab.inner_text("#count") == f"{len(left)} of 5 pictures"
    tab.fill("#search", "no such thing")
    assert names(tab) == [] and tab.is_visible("#none")


def test_everything_can_be_done_from_the_keyboard(opened):
    tab = opened()
    for expected in ("search", "sort", "direction", "0", "1 reference"):
        tab.keyboard.press("Tab")
        assert focused(tab) == expected
        assert tab.evaluate("getComputedStyle(document.activeElement).outline").endswith("solid 3px")
    tab.keyboard.press("Enter")
    assert tab.get_by_text("The Dog runs").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.get_by_text("The Dog runs").is_visible() and focused(tab) == "0"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert focused(tab) == "2"
    tab.keyboard.press("Enter")
    assert tab.is_visible(".heat-map .strip img")
    tab.keyboard.press("Escape")
    assert not tab.is_visible(".heat-map .strip img") and focused(tab) == "2"
    tab.keyboard.press("End")
    assert focused(tab) == "4"
    tab.keyboard.press("Home")
    assert focused(tab) == "0"
    tab.keyboard.press("/")
    tab.keyboard.type("3.jpg")
    assert names(tab) == ["3"] and focused(tab) == "search"
    tab.keyboard.press("ArrowDown")
    assert focused(tab) == "2"
    tab.keyboard.press("Escape")
    assert len(names(tab)) == 5 and tab.input_value("#search") == "" and focused(tab) == "2"


def test_names_and_roles_are_there_for_those_who_do_not_see_the_page(opened):
    tab = opened()
    images = tab.locator("img").all()
    assert all(image.get_attribute("alt") for image in images)
    assert tab.get_by_role("searchbox", name="Search").count() == 1
    assert tab.get_by_role("combobox", name="Sort by").count() == 1
    assert tab.get_by_role("status").get_attribute("aria-live") == "polite"
    assert tab.get_by_role("list", name="Pictures").get_by_role("listitem", name="a dog").count() == 1
    assert tab.locator(".card").first.get_attribute("aria-setsize") == "5"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_text_is_easy_to_read_by_day_and_night(opened, scheme):
    tab = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.locator(".heat-map summary").tap()
    assert tab.evaluate("document.documentElement.scrollWidth") == 360  # the strip scrolls by itself
    assert all(box["height"] >= 40 for box in (tab.locator(id).bounding_box() for id in ("#search", "#sort")))
    for selector in (".caption", ".name", ".error", ".numbers data", "summary"):
        assert tab.evaluate(CONTRAST, selector) >= 4.5, selector  # WCAG 2.2, 1.4.3


@pytest.mark.parametrize("way", WAYS)
def test_an_accessibility_checker_finds_nothing_serious(opened, way):
    tab = opened(**WAYS[way])
    tab.evaluate("document.querySelectorAll('details').forEach((part) => part.open = true)")
    assert not findings(tab)
    if "desk" in way:
        tab.fill("#search", "no such thing")
        assert not findings(tab)


CONTRAST = """(selector) => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const element = document.querySelector(selector);
  let ground = element;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light);
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}"""


def test_without_javascript_every_card_is_there_to_be_read(opened):
    tab = opened(java_script_enabled=False)
    assert names(tab) == ["1", "2", "3", "4", "<5>"]
    assert not tab.is_visible("#controls")


def test_thousands_of_pictures_are_sorted_and_searched_at_once(opened, tmp_path):
    small = [picture(number) for number in range(20)]
    captions = [f"a {'dog' if place % 7 else 'cat'} and {place} stars" for place in range(3000)]
    given = [
        shown(place, f"{place}.jpg", text, -1.0, references=["some animal"] * 5, thumbnail=small[place % 20])
        for place, text in enumerate(captions)
    ]
    scores = {place: {"CIDEr": place * 7919 % 3000 / 1000} for place in range(3000)}
    written(tmp_path / "many.html", given, scores)
    tab = opened(tmp_path / "many.html")
    assert tab.locator(".card").count() < 1000  # the rest is laid out when it is scrolled to
    milliseconds = """async ([id, value, event]) => {
      const start = performance.now();
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event(event));
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      return performance.now() - start;
    }"""
    assert tab.evaluate(milliseconds, ["sort", "CIDEr", "change"]) < 1000
    assert tab.locator(".card data[data-key=CIDEr]").first.get_attribute("value") == "2.999"
    assert tab.evaluate(milliseconds, ["search", "cat", "input"]) < 1000
    assert tab.inner_text("#count") == "429 of 3,000 pictures"
    tab.focus(".card >> nth=0")
    tab.keyboard.press("End")
    assert tab.locator(".card").count() == 429
    assert tab.locator(".card").last.get_attribute("aria-posinset") == "429"


def test_a_page_that_no_browser_would_open_is_refused():
    with pytest.raises(UserError, match=r"^gallery=page.pdf is a page for a browser; name an \.html file"):
        gallery_path("page.pdf", Path("captions.jsonl"))
