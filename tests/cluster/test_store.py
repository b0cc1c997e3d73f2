"""Images and results on disks and in stores."""

import pytest
from PIL import Image

from retinanet.cluster.store import Store, fetch_image, list_images
from retinanet.errors import UserError

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path):
    pytest.importorskip("fsspec")
    address = {"path": str(tmp_path / "s"), "file": f"file://{tmp_path}/s", "memory": f"memory://{tmp_path.name}/s"}
    return Store(address[request.param])


def test_files_are_written_listed_read_and_removed(store):
    assert store.list_files("parts") == [] and not store.exists("parts/a")
    store.write("parts/b", b"two")
    store.write("parts/a", b"one")
    store.write("parts/a", b"three")
    assert store.list_files("parts") == ["parts/a", "parts/b"] == store.list_files(recursive=True)
    assert store.read("parts/a") == b"three" and store.exists("parts/b") and not store.exists("parts")
    store.remove(["parts/a", "parts/none"])
    assert store.list_files("parts") == ["parts/b"]
    with pytest.raises(UserError, match="cannot be read"):
        store.read("parts/a")


def test_images_are_listed_wherever_they_are(tmp_path):
    for name in ("a/b.PNG", "a/c/d.png", "a/.hidden/e.png", "a/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name, format="PNG")
    local = [str(tmp_path / "a" / name) for name in ("b.PNG", "c/d.png")]
    address = f"file://{tmp_path}/a"
    assert list_images([str(tmp_path / "a")]) == local
    assert list_images([address]) == [f"{address}/b.PNG", f"{address}/c/d.png"]
    assert list_images([f"{address}/c/d.png", address]) == [f"{address}/c/d.png", f"{address}/b.PNG"]
    with fetch_image(f"{address}/b.PNG") as path:
        assert Image.open(path).size == (8, 6) and not str(path).startswith(str(tmp_path / "a"))
    assert not path.exists()
    with fetch_image(local[0]) as path:
        assert str(path) == local[0]


@pytest.mark.parametrize("scheme", ["file://", "memory:/"])
def test_names_that_addresses_cannot_hold(tmp_path, scheme):
    folder = f"{scheme}{tmp_path}/\N{LATIN SMALL LETTER A WITH DIAERESIS} b"
    names = ["a b.png", "c%20d.png", "e?f.png", "g#\N{GREEK SMALL LETTER ALPHA}.png"]
    if scheme == "memory:/":
        names.remove("e?f.png")  # fsspec takes it for a pattern
    store = Store(folder)
    for name in names:
        store.write(name, name.encode())
    places = list_images([folder])
    assert len(places) == len(names) and store.list_files() == names
    for place, name in zip(places, names, strict=True):
        with fetch_image(place) as path:
            assert path.read_text() == name


def test_a_path_is_absolute_for_actors_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("found").address == Store("found/").address == str(tmp_path / "found")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nonsense://bucket/x", "is no address of a store that can be reached"),
        ("file:///no/such/folder", "no image at file:///no/such/folder"),
        ("/no/such/folder", "no image at /no/such/folder"),
    ],
)
def test_a_slip_is_told(name, told):
    with pytest.raises(UserError, match=told):
        list_images([name])


def test_a_vanished_image_is_told(tmp_path):
    with pytest.raises(UserError, match=r"x.png: no such image file"), fetch_image(f"file://{tmp_path}/x.png"):
        pass
