"""Data sets from the web, as a server on this machine sends them: whole, broken off, wrong, late."""

import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_sets import draw, heard  # noqa: F401  # `heard` is a fixture for all

from captioning.data import datasets, download
from captioning.data.datasets import SOURCES, Archive
from captioning.data.download import fetch, unpack
from captioning.errors import UserError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Sends `files`; the next answers are as `faults` say, one each: a status, `cut`, `wrong`, `drop`, `no range`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, [], []

    def handle_error(self, request, client_address):
        """Of a client that went away since it had seen enough."""

    def url(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, fault = self.server, self.server.faults.pop(0) if self.server.faults else None
        server.asked.append(self.headers.get("Range", ""))
        content = server.files.get(self.path[1:])
        if isinstance(fault, int) or content is None:
            self.send_response(fault or 404)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0 if fault == "no range" else int((server.asked[-1] or "bytes=0-")[6:-1])
        if start >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        content = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{start + len(content)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        content = content[:-1] + b"?" if fault == "wrong" else content
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else b"" if fault == "drop" else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as one:
        one.files["a.zip"] = CONTENT
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield one
        one.shutdown()


def archive(server, name="a.zip", **changed):
    content = server.files[name]
    return Archive(**{"url": server.url(name), "md5": hashlib.md5(content).hexdigest(), "size": len(content)} | changed)


@pytest.mark.parametrize(
    ("faults", "asked"),
    [
        ([], ["0"]),
        (["cut", "cut"], ["0", "2560000", "3840000"]),
        ([503, 429, "cut", 500], ["0", "0", "0", "2560000", "2560000"]),
        (["cut", "no range"], ["0", "2560000"]),
        (["wrong"], ["0", "0"]),
        (["cut", "wrong"], ["0", "2560000", "0"]),
    ],
    ids=str,
)
def test_what_breaks_off_is_gone_on_from_and_what_is_wrong_is_fetched_anew(server, tmp_path, faults, asked):
    server.faults = faults
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert [one[6:-1] or "0" for one in server.asked] == asked
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_command_that_was_killed_goes_on_and_what_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1_000_000])
    fetch(archive(server), tmp_path)
    fetch(archive(server), tmp_path)
    assert server.asked == ["bytes=1000000-"]
    (tmp_path / "a.zip").rename(tmp_path / "a.zip.part")
    fetch(archive(server, size=None), tmp_path)
    assert server.asked[1:] == [f"bytes={len(CONTENT)}-"], "whose size nobody knows: the server says that it is all"


@pytest.mark.parametrize(
    ("faults", "changed", "match"),
    [
        ([404], {}, r"a\.zip cannot be fetched: 404 Not Found"),
        (
            [503] * 9,
            {},
            r"503 Service Unavailable, 8 times in a row; 0 bytes are kept in .*a\.zip\.part, and the same com",
        ),
        (["cut", *["drop"] * 9], {}, r"the connection ended early, 8 times in a row; 2,560,000 bytes are kept in"),
        (["wrong"] * 2, {}, r"sent twice is not the archive whose MD5 is .*put it at .*/a\.zip, and run the same"),
        ([], {"size": 7}, r"a\.zip has 5,120,000 bytes, and 7 are published: it is another file"),
        ([], {"url": "http://127.0.0.1:9/a.zip"}, r"cannot be fetched: .*refused.*, 8 times in a row"),
    ],
)
def test_what_cannot_be_fetched_ends_in_a_sentence(server, tmp_path, faults, changed, match):
    server.faults = faults
    with pytest.raises(UserError, match=match):
        fetch(archive(server, **changed), tmp_path)


def test_a_full_disk_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match=r"a\.zip needs 0\.0 GB more in .*; make room, or choose another folder"):
        fetch(archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return content.getvalue()


def test_unpacking_goes_on_skips_what_is_no_data_and_stays_inside(server, tmp_path):
    server.files["a.zip"] = zipped(**{"x/a.jpg": "a", "x/b.jpg": "b", "__MACOSX/x/._a.jpg": "-", "x/.DS_Store": "-"})
    a, path = archive(server, folder="under", only=r"x/.*|__.*"), fetch(archive(server), tmp_path)
    assert unpack(a, path, tmp_path) == 2
    (tmp_path / "under/x/b.jpg").write_text("cut short")
    unpack(a, path, tmp_path)
    assert {p.name: p.read_text() for p in (tmp_path / "under/x").iterdir()} == {"a.jpg": "a", "b.jpg": "b"}
    path.write_bytes(path.read_bytes().replace(b"x/b.jpgb", b"x/b.jpg?"))
    (tmp_path / "under/x/b.jpg").unlink()
    with pytest.raises(UserError, match=r"a\.zip is damaged \(Bad CRC-32 for file 'x/b\.jpg'\); delete it, and run"):
        unpack(a, path, tmp_path)
    path.write_bytes(zipped(**{"../b.jpg": "b"}))
    with pytest.raises(UserError, match=r"a\.zip holds \.\./b\.jpg, which would lie outside of its folder"):
        unpack(archive(server), path, tmp_path)


@pytest.fixture
def flickr8k(server, tmp_path, monkeypatch):
    """A small Flickr8k on the server."""
    draw(tmp_path / "a.jpg")
    picture = (tmp_path / "a.jpg").read_bytes()
    rows = "".join(f"{name}.jpg#{n}\tcaption {n}\n" for name in "abc" for n in (0, 1))
    lists = {
        f"Flickr_8k.{split}Images.txt": f"{name}.jpg\n" for split, name in (("train", "a"), ("dev", "b"), ("test", "c"))
    }
    server.files["text.zip"] = zipped(**{"Flickr8k.token.txt": rows}, **lists)
    server.files["pictures.zip"] = zipped(**{f"Flicker8k_Dataset/{name}.jpg": picture for name in "abc"})
    archives = archive(server, "text.zip", folder="Flickr8k_text"), archive(server, "pictures.zip")
    small = {"archives": archives, "counts": dict.fromkeys(("train", "val", "test"), (1, 2))}
    monkeypatch.setitem(SOURCES, "flickr8k", replace(SOURCES["flickr8k"], **small))
    return tmp_path / "set"


def test_a_data_set_is_fetched_unpacked_counted_and_left_alone_afterwards(server, flickr8k, command, caplog):
    status, output = command("prepare.py", "download=flickr8k", f"data.root={flickr8k}")
    assert status == 0, output
    assert "train: 1 photographs, 2 captions, as published" in output
    assert sorted(path.name for path in flickr8k.iterdir()) == ["Flicker8k_Dataset", "Flickr8k_text"]
    asked = len(server.asked)
    datasets.download("flickr8k", flickr8k)
    assert len(server.asked) == asked and "Flickr8k is complete in" in caplog.text
    (flickr8k / "Flicker8k_Dataset/b.jpg").unlink()
    datasets.download("flickr8k", flickr8k)
    assert (flickr8k / "Flicker8k_Dataset/b.jpg").is_file() and len(server.asked) == asked + 2


def test_other_counts_than_the_published_are_said(server, flickr8k, monkeypatch):
    other = replace(SOURCES["flickr8k"], counts={"train": (6000, 30_000)})
    monkeypatch.setitem(SOURCES, "flickr8k", other)
    with pytest.raises(UserError, match="but train has 1 photographs with 2 captions, not 6,000 with 30,000"):
        datasets.download("flickr8k", flickr8k)


def test_what_needs_a_form_is_said_with_its_steps(command):
    status, output = command("prepare.py", "download=flickr30k")
    assert status == 1 and "kagglehub.dataset_download('hsankesara/flickr-image-dataset')" in output
    status, output = command("prepare.py", "download=flickr8k", "data=coco")
    assert status == 1 and "download=flickr8k and data=coco are two data sets; leave data=... out" in output


def test_published_checksums_and_sizes_are_whole():
    for source in SOURCES.values():
        assert all(len(bytes.fromhex(one.md5)) == 16 for one in source.archives)
