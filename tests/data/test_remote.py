"""Files elsewhere: read by ranges, each block once, through a network that fails now and then; or why they are not."""

import sys
import threading
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest

from captioning.data import remote
from captioning.data.remote import Blocks, RemoteFile, facts_of
from captioning.errors import UserError

pytest.importorskip("aiohttp", reason="fsspec reads https:// by aiohttp")

CONTENT = bytes(range(256)) * 40  # 10,240 bytes, in blocks of 1,000


@pytest.fixture
def server(monkeypatch):
    """`server.url`, what was asked of it in `asked`, and what goes wrong with the next answers in `faults`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            served.asked[f"{self.command} {self.headers.get('Range', 'all')}"] += 1
            fault = served.faults.pop(0) if served.faults else ""
            if fault.isdigit() or self.path != "/a.tar":
                self.send_error(int(fault or 404))
                return
            span, status = self.headers.get("Range"), 200
            content = CONTENT
            if span and fault != "no ranges":
                first, last = span.removeprefix("bytes=").split("-")
                content, status = CONTENT[int(first) : int(last or len(CONTENT)) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"one"')
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{len(CONTENT)}")
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
            self.close_connection = fault == "cut"

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.asked, served.faults = Counter(), []
    served.url = f"http://127.0.0.1:{served.server_port}/a.tar"
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(remote, "OVERLAP_BYTES", 100)
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)
    yield served
    served.shutdown()
    served.server_close()


def opened(server, folder, limit=10**6) -> RemoteFile:
    return RemoteFile(server.url, *facts_of(server.url), Blocks(folder / "blocks", limit))


def blocks_in(folder) -> list[Path]:
    """And that nothing else is there but their count, no locks and nothing half-written."""
    assert {path.suffix or path.name for path in folder.iterdir()} <= {".block", ".held"}
    return list(folder.glob("*.block"))


def test_each_block_is_fetched_once_and_kept_within_the_limit(server, tmp_path):
    file = opened(server, tmp_path)
    assert (file.size, file.read_at(990, 1020)) == (len(CONTENT), CONTENT[990:2010])
    assert file.read_at(10_200, 99) == CONTENT[10_200:] and file.read_at(0, 0) == b""
    asked = sum(server.asked.values())
    assert file.read_at(1900, 200) == CONTENT[1900:2100] and sum(server.asked.values()) == asked, "the blocks overlap"
    again = RemoteFile(server.url, len(CONTENT), '"one"', Blocks(tmp_path / "blocks", 10**6))
    assert (
        again.read_at(1000, 500) + again.read_at(10_300, 9) == CONTENT[1000:1500]
        and sum(server.asked.values()) == asked
    )
    small = opened(server, tmp_path / "small", limit=2500)
    assert b"".join(small.read_at(start, 700) for start in range(0, len(CONTENT), 700)) == CONTENT
    held = blocks_in(tmp_path / "small/blocks")
    assert sum(path.stat().st_size for path in held) <= 2500


def test_many_processes_together_hold_no_more_than_the_limit_and_what_a_killed_one_left_goes(tmp_path):
    folder = tmp_path / "blocks"
    folder.mkdir()
    (folder / ".a.block.1.tmp").write_bytes(bytes(5000))  # of a process that was killed as it wrote
    most = [0]

    with get_context("fork").Pool(4) as pool:
        running = pool.map_async(partial(fetch_many, folder), range(4))
        while not running.ready():
            there = [status_of(path) for path in folder.iterdir() if path.name != ".held"]
            sizes = [status.st_size for status in there if status and status.st_size < 5000]
            most[0] = max(most[0], sum(sizes))
        running.get()
    assert 2000 < most[0] <= 3500
    assert len(blocks_in(folder)) == 3


def fetch_many(folder, process):
    for number in range(30):
        data = bytes([process, number]) * 500
        assert Blocks(folder, 3500).read(f"{process}-{number}", 0, 1000, lambda data=data: data) == data


def status_of(path):
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def test_a_cache_that_is_too_small_for_an_epoch_is_refused(tmp_path):
    Blocks(tmp_path, 36_000_000).require_room()
    with pytest.raises(
        UserError, match=r"cache_gigabytes=0\.02 is too small: .* 4 ranges of 8\.7 MB .*; give 0\.04 or more"
    ):
        Blocks(tmp_path, 20_000_000).require_room()


@pytest.mark.parametrize("faults", [["503", "503"], ["cut"], ["no ranges", "500"]])
def test_what_fails_is_tried_again(server, tmp_path, faults, caplog):
    server.faults[:] = ["503", "503"]  # one by HEAD, one by GET
    file = opened(server, tmp_path)
    server.faults[:] = faults
    assert file.read_at(2000, 1000) == CONTENT[2000:3000]
    assert caplog.text.count("trying again") == 1 + len(faults)


def test_what_keeps_failing_is_said_and_nothing_half_fetched_is_kept(server, tmp_path):
    file = opened(server, tmp_path)
    for faults, reason in (
        (["cut"], "ContentLength|payload"),
        (["no ranges"], "10240 bytes came instead of those from 0 to"),
    ):
        server.faults[:] = faults * remote.TRIES
        with pytest.raises(UserError, match=rf"a\.tar cannot be read, tried 5 times: .*({reason}).*"):
            file.read_at(0, 10)
        assert blocks_in(tmp_path / "blocks") == []


@pytest.mark.parametrize(
    "url, without, said",
    [
        ("gs://b/a.tar", "gcsfs", r"gs:// cannot be read here; pip install 'captioning\[gs\]'$"),
        ("hf://datasets/a/a.tar", "huggingface_hub", "hf:// cannot be read here; pip install huggingface_hub$"),
        ("s3://b/a.tar", "s3fs", r"s3:// cannot be read here; pip install 'captioning\[shards\]'$"),
        (
            "nfs://b/a.tar",
            "nothing",
            r"nfs:// cannot be read here; give s3://, https://, http://, hf://, gs:// or a path",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_named_by_its_extra(monkeypatch, url, without, said):
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.setitem(sys.modules, without, None)
    monkeypatch.delitem(registry._registry, url.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=said):
        facts_of(url)


def test_what_no_second_try_mends_is_said_at_once(server, tmp_path):
    with pytest.raises(UserError, match=r"b\.tar does not exist$"):
        facts_of(server.url.replace("a.tar", "b.tar"))
    server.faults[:] = ["403"] * 4
    with pytest.raises(UserError, match=r"the server does not give it out \(403\); check the address"):
        facts_of(server.url)
