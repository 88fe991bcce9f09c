"""What was written is read back: every whole row, and nothing of what a kill or a power cut has torn."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_formats import LOG_PROBABILITIES, READABLE

from captioning.prediction.formats import Row, format_of
from captioning.prediction.read_back import rows_back

OUTPUTS = ("c.jsonl", "c.csv", "c.json")
NUMBERS = st.one_of(LOG_PROBABILITIES, st.just(-math.inf))
CAPTIONED = st.builds(lambda path, caption, number: Row(path, caption, number), READABLE, READABLE, NUMBERS)
FAILED = st.builds(lambda path, reason: Row(path, error=reason), READABLE, READABLE)
ROWS = st.lists(st.one_of(CAPTIONED, FAILED), max_size=6)


def written(output, rows):
    """The bytes of each row, `""` for one that has no place in the file."""
    chosen = format_of(output)
    return [chosen.row(row).encode() for row in rows]


def numbered(rows, ids):
    """The same rows with an `image_id` of their own each, or by turns a text."""
    return [
        Row(row.path, row.caption, row.log_probability, error=row.error, image_id=ids(place))
        for place, row in enumerate(rows)
    ]


@pytest.mark.parametrize("output", OUTPUTS)
@given(ROWS, st.sampled_from([lambda place: place, lambda place: f"{place}=\n", None]), st.data())
def test_rows_come_back_up_to_the_last_that_is_whole_wherever_the_file_was_cut(output, rows, ids, data):
    if ids or output == "c.json":  # COCO results know no two pictures of one id
        rows = numbered(rows, ids or (lambda place: place))
    parts = written(output, rows)
    text = b"".join(parts)
    length = data.draw(st.integers(0, len(text)))
    whole = max(n for n in range(len(parts) + 1) if len(b"".join(parts[:n])) <= length)
    back = list(rows_back(io.BytesIO(text[:length]), output, rows.__getitem__))
    kept = [row for row, part in zip(rows[:whole], parts, strict=False) if part]
    ends = [len(b"".join(parts[: n + 1])) for n in range(whole) if parts[n]]
    assert [one.end for one in back] == ends
    assert [one.row.caption for one in back] == [row.caption for row in kept]
    assert [one.row.image_id for one in back] == [row.image_id for row in kept]


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_follows_goes_on_as_if_it_had_never_been_interrupted(output):
    rows = numbered([Row("a.jpg", "a dog", -1.0), Row("b.jpg", error="empty file"), Row("c.jpg", "a cat", -2.0)], int)
    whole = b"".join(written(output, rows))
    back = list(rows_back(io.BytesIO(whole[:-3]), output, rows.__getitem__))
    assert back[-1].end == len(b"".join(written(output, rows[:2])))
    chosen = format_of(output)
    for one in back:
        chosen.row(one.row)
    assert whole[: back[-1].end] + chosen.row(rows[2]).encode() == whole


def test_alternatives_come_back():
    row = Row("a.jpg", "a dog", -1.0, [("a dog", -1.0), ("a cat", -math.inf)])
    chosen = format_of("c.jsonl")
    (back,) = rows_back(io.BytesIO(chosen.row(row).encode()), "c.jsonl", [row].__getitem__)
    assert [caption for caption, _ in back.row.alternatives] == ["a dog", "a cat"]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("rest", [b"\0" * 50, b"{}\n", b'"a",b\r\n', b"[1]\n", b"null\n"])
def test_what_this_program_does_not_write_is_no_row(output, rest):
    rows = [Row("1.jpg", "a dog", -1.0)]
    text = b"".join(written(output, rows))
    assert len(list(rows_back(io.BytesIO(text + rest), output, rows.__getitem__))) == 1
