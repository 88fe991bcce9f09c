"""The drawn data set: the same pictures everywhere, known probabilities, and a judge that the grammar agrees with."""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captioning.errors import UserError
from captioning.shapes.__main__ import main
from captioning.shapes.grammar import caption_distribution, captions_of, perplexity_floor
from captioning.shapes.judge import is_true
from captioning.shapes.scenes import Scene, Shape, draw, scene_of, split_indices

SCENES = [scene_of(7, index) for index in range(150)]

RED_CIRCLE = Shape("circle", "red", "large", x=0.17, y=0.5, radius=0.12, rgb=(214, 45, 40))
BLUE_SQUARE = Shape("square", "blue", "small", x=0.5, y=0.83, radius=0.07, rgb=(45, 85, 215))
GREEN_SQUARE = Shape("square", "green", "small", x=0.83, y=0.83, radius=0.07, rgb=(50, 165, 70))
SCENE = Scene((RED_CIRCLE, BLUE_SQUARE, GREEN_SQUARE), background=240)
TWINS = Scene((BLUE_SQUARE, replace(BLUE_SQUARE, x=0.17, y=0.17), GREEN_SQUARE), background=240)


def test_a_scene_and_its_captions_never_change():
    text = repr([(scene_of(42, index), captions_of(42, index)) for index in range(200)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "10e38764eb79f99f"


def test_pixels_never_change():
    pixels = b"".join(draw(scene_of(42, index), 48).tobytes() for index in range(50))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "1880c6adfbf9ceb6"


def test_seeds_and_indices_give_different_scenes():
    scenes = {scene_of(seed, index) for seed in range(5) for index in range(200)}
    assert len(scenes) == 1000


def test_shapes_lie_within_the_picture_and_never_overlap():
    for scene in SCENES:
        for shape in scene.shapes:
            reach = 1.1 * shape.radius
            assert reach < shape.x < 1 - reach and reach < shape.y < 1 - reach
        for one, other in combinations(scene.shapes, 2):
            assert max(abs(one.x - other.x), abs(one.y - other.y)) > 1.1 * (one.radius + other.radius)


def test_the_shapes_of_a_picture_differ_in_colour():
    assert all(len({shape.colour for shape in scene.shapes}) == len(scene.shapes) for scene in SCENES)


def test_left_and_above_are_never_a_close_call():
    gaps = [abs(a - b) for s in SCENES for p, q in combinations(s.shapes, 2) for a, b in ((p.x, q.x), (p.y, q.y))]
    assert all(gap < 0.121 or gap > 0.21 for gap in gaps)
    assert any(gap < 0.121 for gap in gaps) and any(gap > 0.21 for gap in gaps)


def test_one_two_and_three_shapes_all_occur_in_their_proportions():
    counts = Counter(len(scene_of(3, index).shapes) for index in range(3000))
    assert [counts[n] / 3000 for n in (1, 2, 3)] == pytest.approx([0.4, 0.4, 0.2], abs=0.03)


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_a_shape_is_drawn_where_the_scene_says_in_its_colour(image_size):
    for scene in SCENES[:20]:
        picture = draw(scene, image_size)
        assert picture.shape == (image_size, image_size, 3) and picture.dtype == np.uint8
        for shape in scene.shapes:
            assert tuple(picture[int(shape.y * image_size), int(shape.x * image_size)]) == shape.rgb


@pytest.mark.parametrize(("kind", "area"), [("circle", math.pi), ("square", 1.76**2), ("triangle", 1.21 * 27**0.5 / 4)])
def test_coverage_adds_up_to_the_area_of_the_shape(kind, area):
    shape = replace(RED_CIRCLE, kind=kind, x=0.51, y=0.49, rgb=(0, 0, 0))
    covered = 1 - draw(Scene((shape,), background=255), 96)[..., 0] / 255
    assert covered.sum() / 96**2 == pytest.approx(area * shape.radius**2, rel=0.01)


def test_probabilities_sum_to_one():
    for scene in SCENES:
        assert sum(caption_distribution(scene).values()) == pytest.approx(1, abs=1e-12)


def test_a_caption_that_can_be_derived_twice_has_the_sum_of_both_ways():
    distribution = caption_distribution(TWINS)
    # describe 0.6, two of the three shapes, "a" 0.5, no size 0.6, no place 0.3
    assert distribution["a blue square"] == pytest.approx(0.6 * 2 / 3 * 0.5 * 0.6 * 0.3)
    # relate 0.1, two of six pairs, no sizes 0.8 * 0.8; one twin is left of it, the other left and above
    assert distribution["a blue square is to the left of a green square"] == pytest.approx(0.1 / 6 * 0.64 * (1 + 1 / 2))


def test_captions_come_as_often_as_their_probabilities_say():
    """Over many pictures, the nats that captions cost are on average what the distributions' entropies say."""
    scenes = {index: caption_distribution(scene_of(5, index)) for index in range(1500)}
    surprises = [-math.log(scenes[index][c]) for index in scenes for c in captions_of(5, index)]
    expected = [-sum(p * math.log(p) for p in scenes[i].values()) for i in scenes for _ in captions_of(5, i)]
    error = np.std(surprises) / math.sqrt(len(surprises))
    assert np.mean(surprises) == pytest.approx(np.mean(expected), abs=4 * error)


def test_a_picture_has_four_to_six_captions_and_mostly_five():
    counts = Counter(len(captions_of(5, index)) for index in range(1000))
    assert set(counts) == {4, 5, 6} and counts[5] > 700


def test_the_floor_is_what_the_true_distribution_scores():
    def count_words(caption: str) -> int:
        return len(caption.split())

    captions = [(caption, index) for index in (3, 4) for caption in captions_of(9, index)]
    nats = -sum(math.log(caption_distribution(scene_of(9, index))[caption]) for caption, index in captions)
    tokens = sum(count_words(caption) + 1 for caption, _ in captions)
    assert perplexity_floor(9, (3, 4), count_words) == pytest.approx(math.exp(nats / tokens))


def test_everything_the_grammar_says_is_true():
    for scene in SCENES:
        for caption in caption_distribution(scene):
            assert is_true(caption, scene), (caption, scene)


OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above", "top": "bottom", "bottom": "top"}
OPPOSITES |= {"large": "small", "small": "large", "circle": "square", "square": "triangle", "triangle": "circle"}
OPPOSITES |= {"one": "two", "two": "three", "three": "two", "red": "green", "green": "blue", "blue": "red"}


def test_a_changed_word_makes_a_caption_false_unless_another_shape_makes_it_true():
    """With one shape there is no other shape: every change of a word is a lie."""
    changed = 0
    for scene in (scene for scene in SCENES if len(scene.shapes) == 1):
        for caption in caption_distribution(scene):
            for word in set(caption.split()) & set(OPPOSITES):
                assert not is_true(caption.replace(word, OPPOSITES[word]), scene), (caption, word, scene)
                changed += 1
    assert changed > 500


def test_the_judge_calls_a_changed_caption_true_only_where_the_grammar_could_say_it():
    kept = Counter()
    for scene in SCENES:
        sayings = caption_distribution(scene)
        for caption in sayings:
            for word in set(caption.split()) & set(OPPOSITES):
                changed = caption.replace(word, OPPOSITES[word])
                assert not is_true(changed, scene) or changed in sayings, (changed, scene)
                kept[is_true(changed, scene)] += 1
    assert kept[False] > 10 * kept[True] > 0


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a red circle is to the left of a blue square", SCENE),
        ("a blue square is to the right of a large red circle", SCENE),
        ("a small green square is below a red circle", SCENE),
        ("there is a small blue square at the bottom", SCENE),
        ("a green square, a red circle and a blue square", SCENE),
        ("a red circle and a green square", SCENE),  # of some shapes: nothing false is said
        ("one circle and two squares", SCENE),
        ("there are three shapes", SCENE),
        ("two blue squares and a green square", TWINS),
        ("a blue square is above a blue square", TWINS),
    ],
)
def test_true_captions_are_true(caption, scene):
    assert is_true(caption, scene)


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("a blue square is to the left of a red circle", SCENE),
        ("a blue square is above a green square", SCENE),  # level with it
        ("a small red circle", SCENE),
        ("a red square", SCENE),
        ("there is a blue square in the middle", SCENE),
        ("a blue square on the left", SCENE),
        ("a green square in the bottom left corner", SCENE),
        ("two circles and one square", SCENE),
        ("two red circles", SCENE),
        ("a red circle and a red circle", SCENE),  # there is but one
        ("there are two shapes", SCENE),
        ("a red circle is to the left of a red circle", SCENE),
        ("two squares and a blue square", SCENE),  # three squares
    ],
)
def test_false_captions_are_false(caption, scene):
    assert not is_true(caption, scene)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "red circle",
        "a red circle is",
        "a red circle is to the left of",
        "a red circle red circle",
        "a circle red",
        "there are three shape",
        "there is three shapes",
        "there are one shapes",
        "two red circle",
        "a red circle and",
        "a red circle and and a blue square",
        "a red circle and a blue square and a green square",
        "a red circle, a blue square",
        ", a red circle and a blue square",
        "a circle and a square",
        "a red circle in the top middle corner",
        "A red circle",
        "a red circle.",
        " a red circle",
        "a red circle\n",
        "a large small red circle",
    ],
)
def test_what_is_not_a_sentence_is_false(caption):
    assert not is_true(caption, SCENE)


WORDS = ["a", "red circle", "is", "to the left of", "blue", "square", "and", ",", "there", "two", "squares"]


@given(st.lists(st.sampled_from(WORDS)))
def test_the_judge_judges_any_words_without_failing(words):
    assert is_true(" ".join(words), SCENE) in (True, False)


def test_no_picture_is_in_two_splits():
    ranges = [split_indices("val", 1_000_000), split_indices("test", 1_000_000), split_indices("train", 5_000_000)]
    assert all(not range(max(a[0], b[0]), min(a[-1], b[-1]) + 1) for a, b in combinations(ranges, 2))
    assert split_indices("test", 3) == split_indices("test", 10)[:3]


@pytest.mark.parametrize(
    ("split", "count", "sentence"),
    [
        ("dev", 10, "data=shapes has no split 'dev'; choose one of train, val, test"),
        ("val", 0, "the val split of data=shapes was asked for 0 pictures; ask for at least 1"),
        ("test", 1_000_001, "the test split of data=shapes holds 1000000 pictures, not 1000001; ask for fewer"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(split, count, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        split_indices(split, count)


def test_drawn_files_carry_the_scene_in_their_names_and_can_be_judged(tmp_path: Path, capsys):
    folder = tmp_path / "pictures"
    main(["draw", str(folder), "--split", "test", "--count", "4", "--seed", "42", "--image-size", "40"])
    files = sorted(folder.iterdir())
    indices = split_indices("test", 4)
    assert [file.name for file in files] == [f"shapes-test-seed42-{index:07d}.png" for index in indices]
    assert np.array_equal(np.asarray(Image.open(files[2])), draw(scene_of(42, indices[2]), 40))

    captions = [captions_of(42, index)[0] for index in indices[:3]] + ["a red hexagon"]
    rows = [json.dumps({"path": str(f), "caption": c}) for f, c in zip(files, captions, strict=True)]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows) + "\n")
    assert capsys.readouterr().out == f"4 pictures of the test split, seed 42: {folder}\n"
    main(["judge", str(tmp_path / "captions.jsonl")])
    assert capsys.readouterr().out == f"3 of 4 captions are true (75.0%)\nfalse: {files[3]}: a red hexagon\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "captions.jsonl:1: this is not JSON"),
        ('{"path": "shapes-val-seed1-0000001.png"}', "captions.jsonl:1: .* has no path and caption"),
        ("[1]", "captions.jsonl:1: .* has no path and caption"),
        ('\n{"path": "dog.png", "caption": "a dog"}', "captions.jsonl:2: dog.png is not named like a picture"),
        ("", "captions.jsonl holds no predictions"),
    ],
)
def test_a_file_that_cannot_be_judged_ends_in_one_sentence(tmp_path: Path, capsys, text, sentence):
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=sentence) as ending:
        main(["judge", str(tmp_path / "captions.jsonl")])
    assert "\n" not in str(ending.value)


def test_a_missing_captions_file_is_named(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"nothing\.jsonl can't be read"):
        main(["judge", str(tmp_path / "nothing.jsonl")])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file/pictures can't be written"):
        main(["draw", str(tmp_path / "file" / "pictures")])


@pytest.mark.parametrize(("option", "value"), [("--count", "0"), ("--seed", "-1"), ("--image-size", "0")])
def test_a_number_out_of_range_is_named(tmp_path: Path, option, value):
    with pytest.raises(SystemExit, match=f"{value}"):
        main(["draw", str(tmp_path / "pictures"), f"{option}={value}"])
    assert not (tmp_path / "pictures").exists()
