import os
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.dataset import load_dataset
from retinanet.data.files import ImageFinder, files_in, name_splits, read_text, split_folders, split_word
from retinanet.errors import UserError


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("instances_val2017", "val"),
        ("train", "train"),
        ("Train", "train"),
        ("trainval", "trainval"),
        ("instances_trainval2014", "trainval"),
        ("my-test", "test"),
        ("test-dev2017", "test"),
        ("valid", "valid"),
        ("validation_set", "validation"),
        ("instances_minival2014", "minival"),
        ("annotations", None),
        ("constrain", None),
        ("latest", None),
        ("values", None),
        ("trained", None),
    ],
)
def test_the_split_in_a_name(name, word):
    assert split_word(name) == word


def test_the_splits_of_several_files(tmp_path):
    def named(*names):
        return {split: file.name for split, file in name_splits([tmp_path / name for name in names]).items()}

    assert named("labels.json") == {"": "labels.json"}
    assert named("a_train.json") == {"train": "a_train.json"}
    assert named("a_train.json", "a_val.json") == {"train": "a_train.json", "val": "a_val.json"}
    assert named("fold1.json", "fold2.json") == {"fold1": "fold1.json", "fold2": "fold2.json"}
    assert named("a_train.json", "b_train.json") == {"a_train": "a_train.json", "b_train": "b_train.json"}
    assert named("a.json", "train.json") == {"a": "a.json", "train": "train.json"}


def test_split_folders_are_those_whose_name_begins_with_a_split(tmp_path):
    for name in ("train", "valid", "test2017", "images", "old_train"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in split_folders(tmp_path)] == ["test2017", "train", "valid"]
    assert split_folders(tmp_path / "nowhere") == []


def test_text_is_utf8_with_or_without_a_mark(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffäb".encode())
    assert read_text(tmp_path / "a") == "äb"
    (tmp_path / "b").write_bytes(b"fine\nfine\n\xe4\n")
    with pytest.raises(UserError, match=r"b, line 3: is not UTF-8 text\. Save"):
        read_text(tmp_path / "b")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path)


def test_files_are_found_by_suffix_sorted_and_without_hidden_ones(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.jpg", "._a.jpg", "c.txt", "sub/d.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in files_in(tmp_path, (".jpg",))] == ["a.jpg", "b.JPG"]
    assert [file.name for file in files_in(tmp_path, (".jpg",), deep=True)] == ["a.jpg", "b.JPG", "d.jpg"]
    assert files_in(tmp_path / "nowhere", (".jpg",)) == []


def test_a_folder_that_links_to_its_parent_is_no_endless_walk(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in files_in(tmp_path, (".jpg",), deep=True)] == ["a.jpg"]


def test_images_are_found_in_the_likeliest_folder(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    (second / "deep").mkdir(parents=True)
    first.mkdir()
    for file in (first / "a.jpg", second / "a.jpg", second / "b.png", second / "b.JPG", second / "deep" / "c.jpg"):
        file.touch()
    finder = ImageFinder([first, second], tmp_path, "")
    assert finder.find("a.jpg") == first / "a.jpg"
    assert finder.find("b.png") == second / "b.png"
    assert finder.find("deep/c.jpg") == finder.find("deep\\c.jpg") == second / "deep" / "c.jpg"
    assert finder.find(str(second / "a.jpg")) == second / "a.jpg"
    assert finder.find("nowhere.jpg") == first / "nowhere.jpg"
    assert finder.find("bad\0name.jpg") == first / "bad\0name.jpg"
    assert finder.with_stem("b") == [second / "b.JPG", second / "b.png"]
    assert finder.with_stem("a") == [first / "a.jpg"] and finder.with_stem("z") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", None),
        ("data.yaml", None),
        ("a.xml", None),
        ("boxes.csv", None),
        ("Annotations/a.xml", None),
        ("labels/0.txt", "names: [x]\ntrain: images\n"),
    ],
)
def test_a_named_pipe_in_place_of_annotations_is_not_waited_for(tmp_path, name, content):
    """A pipe without a writer: opening it would wait for ever."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "images" / "0.png")
    if content:
        (tmp_path / ("data.yaml" if name.startswith("labels") else "boxes.csv")).write_text(content)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=r"none of the four|cannot be read|declares no class|is neither"):
            load_dataset(path)


@pytest.mark.parametrize("end", ["", " 1", " x"])
def test_a_long_line_of_an_image_set_takes_no_quadratic_time(tmp_path, end):
    """20 kB of blanks: a pattern that tries every start of them needs 200 million steps, and minutes for 200 kB."""
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><filename>a.png</filename></annotation>")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"a{' ' * 2_000_000}b{end}\n")
    with pytest.raises(UserError, match="holds no a") as error:
        load_dataset(tmp_path, "train")
    assert len(str(error.value)) < 1000


def test_a_name_that_no_folder_can_have():
    assert files_in(Path("a\0b"), [".png"]) == files_in(Path("a\0b"), [".png"], deep=True) == []
