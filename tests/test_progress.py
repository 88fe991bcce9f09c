"""How far a long piece of work is: a bar on a terminal, lines elsewhere."""

import logging
import sys
import time

import pytest
from tqdm import tqdm

from captioning.progress import ProgressLines, progress


@pytest.fixture
def clock(monkeypatch):
    """A time that passes when it is advanced."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(clock, caplog, capfd):
    caplog.set_level(logging.INFO)
    with progress(100, "captioning", "pictures") as counted:
        for _ in range(100):
            clock[0] += 1
            counted.update()
    assert caplog.messages == [
        "captioning: 4 of 100 pictures, 1.0 pictures/s, 0:01:36 left",
        "captioning: 34 of 100 pictures, 1.0 pictures/s, 0:01:06 left",
        "captioning: 64 of 100 pictures, 1.0 pictures/s, 0:00:36 left",
        "captioning: 94 of 100 pictures, 1.0 pictures/s, 0:00:06 left",
        "captioning: 100 of 100 pictures, 1.0 pictures/s",
    ]
    assert "\r" not in "".join(capfd.readouterr())


def test_short_work_that_leaves_nothing_logs_nothing(clock, caplog):
    caplog.set_level(logging.INFO)
    with progress(3, "checking", "pictures", leave=False) as counted:
        counted.update(3)
    assert not caplog.messages


def test_what_was_done_before_is_counted_but_is_not_speed(clock):
    lines = ProgressLines(10, "captioning", "pictures", initial=8)
    assert lines.line(9, seconds=2) == "captioning: 9 of 10 pictures, 0.5 pictures/s, 0:00:02 left"
    assert lines.line(8, seconds=2) == "captioning: 8 of 10 pictures, 0.0 pictures/s"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(3, "captioning", "pictures", leave=False) as counted:
        assert isinstance(counted, tqdm)
