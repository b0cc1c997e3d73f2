import pytest
from PIL import Image

from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError


def put(root, stem, text="0 .5 .5 .5 .5\n", images="images", labels="labels"):
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(root / images / f"{stem}.png")
    if text is not None:
        (root / labels / f"{stem}.txt").write_text(text)


@pytest.fixture
def yolo(tmp_path):
    def write(text="0 .5 .5 .5 .5\n", config="names: [a, b]\ntrain: images\n"):
        put(tmp_path, "x", text)
        if config is not None:
            (tmp_path / "data.yaml").write_text(config)
        return tmp_path

    return write


def test_boxes_in_pixels(yolo):
    (sample,) = load_dataset(yolo("1 0.5 0.5 0.5 0.4\n\n0.0 .25 .5 .5 1\n")).samples
    assert sample.size == (10, 20) and sample.image_id == "images/x.png"
    assert sample.target.boxes.tolist() == [[5, 3, 15, 7], [0, 0, 10, 10]] and sample.target.labels.tolist() == [1, 0]


def test_the_extent_of_polygons(yolo):
    (sample,) = load_dataset(yolo("0 .1 .5 .3 .2 .5 .9\n1 .1 .1 .5 .1 .5 .5 .1 .5\n")).samples
    assert sample.target.boxes.round(decimals=4).tolist() == [[2, 2, 10, 9], [2, 1, 10, 5]]


@pytest.mark.parametrize("place", range(1, 7))
def test_a_polygon_with_a_corner_that_is_no_number(yolo, place):
    words = ["0", ".1", ".5", ".3", ".2", ".5", ".9"]
    words[place] = "nan"
    dataset = load_dataset(yolo(" ".join(words)))
    assert len(dataset.samples[0].target) == 0 and "x.txt, line 1: box (nan" in dataset.skipped[0].sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .5\n", r"x\.txt, line 1: 0 \.5 \.5 \.5\. Expected five numbers"),
        ("0 .5 .5 .5 .5\n0 .5 .5 .5 .5 .9\n", r"x\.txt, line 2: 1 lines have a sixth number"),
        ("0 .5 .5 .5 .5 .5 .5 .5\n", r"line 1: .*corners of a polygon"),
        ("cat .5 .5 .5 .5\n", r"x\.txt, line 1: cat"),
        ("0,.5,.5,.5,.5\n", r"x\.txt, line 1: 0,\.5"),
        ("\n2 .5 .5 .5 .5\n", r"x\.txt, line 2: class id 2 is not declared\. Expected 0 to 1: a, b"),
        ("-1 .5 .5 .5 .5\n", r"class id -1 is not declared"),
        ("0.5 .5 .5 .5 .5\n", r"class id 0\.5 is not declared"),
        ("nan .5 .5 .5 .5\n", r"class id nan is not declared"),
        ("1e999 .5 .5 .5 .5\n", r"class id inf is not declared"),
    ],
)
def test_faulty_lines(yolo, text, message):
    with pytest.raises(UserError, match=message):
        load_dataset(yolo(text))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("names: [a, b]\ntrain: images\n", ("a", "b")),
        ("names: {1: b, 0: a}\ntrain: images\n", ("a", "b")),
        ("names:\n  '0': a\n  '1': b\nval: images\n", ("a", "b")),
        ("names: [no, 7, on]\nnc: 3\ntest: [images]\n", ("no", "7", "on")),
        ("path: .\nnames: [a, b]\n", ("a", "b")),
        ("names: [a, b]\ntrain: ../images\n", ("a", "b")),
        ("names: [a, b]\ntrain: images/x.txt\npath: nowhere\nval: images", ("a", "b")),
    ],
)
def test_configurations(yolo, config, names):
    root = yolo(config=config)
    (root / "images" / "x.txt").write_text("images/x.png\n")
    assert load_dataset(root).class_names == names
    assert load_dataset(root / "data.yaml").class_names == names


def test_the_path_key(tmp_path, monkeypatch):
    put(tmp_path / "sets" / "mine", "x")
    (tmp_path / "here").mkdir()
    for number, base in enumerate(("../sets/mine", str(tmp_path / "sets" / "mine"), "sets/mine")):
        config = tmp_path / "here" / f"{number}.yaml"
        config.write_text(f"path: {base}\ntrain: images\nnames: [a]\n")
        monkeypatch.chdir(tmp_path)
        assert load_dataset(config, "train").samples[0].image_id == "images/x.png"


def test_lists_relative_to_the_set_or_to_themselves(yolo):
    root = yolo(config="names: [a]\ntrain: [lists/train.txt]\nval: lists/val.txt\ntest: lists/test.txt\n")
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("images/x.png\n\n")
    (root / "lists" / "val.txt").write_text("./../images/x.png\n")
    (root / "lists" / "test.txt").write_text(f"{root}/images/x.png\n{root}/images/./x.png\n")
    for split in ("train", "val", "test"):
        (sample,) = load_dataset(root, split).samples
        assert len(sample.target) == 1 and sample.image_id == "images/x.png"


def test_folders_of_several_kinds(tmp_path):
    put(tmp_path, "x", images="train/images", labels="train/labels")
    put(tmp_path, "y", images="valid/images/deep", labels="valid/labels/deep")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\ntest:\nnames: [a]\nnc: 1\n")
    assert splits(tmp_path) == ("train", "val")
    assert [sample.path.name for sample in load_dataset(tmp_path).samples] == ["x.png", "y.png"]
    (tmp_path / "data.yaml").unlink()
    assert splits(tmp_path) == ("train", "valid")
    with pytest.raises(UserError, match=r"no class names\. Write a data\.yaml"):
        load_dataset(tmp_path, "train")
    assert len(load_dataset(tmp_path, "val", class_names=["a"]).samples[0].target) == 1


def test_labels_beside_the_images_with_classes_txt(tmp_path):
    put(tmp_path, "x", images=".", labels=".")
    put(tmp_path, "y", text=None, images=".", labels=".")
    (tmp_path / "classes.txt").write_text("a\nb\n\n")
    dataset = load_dataset(tmp_path)
    assert [len(sample.target) for sample in dataset.samples] == [1, 0] and dataset.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: [a\ntrain: images\n", r"data\.yaml, line \d: broken YAML"),
        ("names: a\n\ttrain: images\ntrain: images", r"data\.yaml, line 2: broken YAML"),
        ("names: [a]\ntrain: images\n? [x]\n: y\n", r"data\.yaml, line 3: broken YAML"),
        ("names: [a]\ntrain: im\x01ages\n", r"data\.yaml: cannot be read as YAML"),
        ("names: " + "[" * 600 + "]" * 600 + "\ntrain: images\n", r"data\.yaml.*YAML"),
        ("names: !!python/object/apply:os.system ['touch stolen']\ntrain: images\n", None),
        ("names: [a]\ntrain: nowhere\n", r"data\.yaml: 'nowhere' does not exist\. Looked at: .*nowhere"),
        ("names: [a]\ntrain: data.yaml\n", r"neither a folder nor a \.txt list"),
        ("names: [a]\ntrain: {x: y}\n", r"'train' holds no path"),
        ("names: [a]\ntrain: [[x]]\n", r"'train' holds no path"),
        ("names: [a]\npath: [x]\n", r"'path' is a list"),
        ("names: [a, b]\nnc: 3\ntrain: images\n", r"'nc' is 3, but 'names' holds 2"),
        ("names: {1: a, 2: b}\ntrain: images\n", r"the keys of 'names' are 1, 2\. Expected 0 to 1"),
        ("names: a\ntrain: images\n", r"'names' has to be a list of class names"),
        ("names: [a, [b]]\ntrain: images\n", r"'names' has to be a list"),
        ("names: &x [*x]\ntrain: images\n", r"data\.yaml, line 1: broken YAML"),
        ("names: []\ntrain: images\n", r"'names' has to be a list"),
        ("names: [a, a]\ntrain: images\n", r"a is declared 2 times"),
    ],
)
def test_faulty_configurations(yolo, config, message):
    root = yolo(config=config)
    if message is None:
        assert load_dataset(root).class_names == ("touch stolen",) and not (root / "stolen").exists()
        return
    with pytest.raises(UserError, match=message):
        load_dataset(root)


def test_a_configuration_that_is_no_mapping(yolo):
    root = yolo(config="just text")
    with pytest.raises(UserError, match=r"data\.yaml: expected 'names:'"):
        load_dataset(root / "data.yaml")


def test_two_configurations(yolo):
    root = yolo()
    (root / "other.yaml").write_text("names: [a, b]\ntrain: images\n")
    assert len(load_dataset(root)) == 1  # data.yaml is preferred
    (root / "data.yaml").rename(root / "more.yml")
    with pytest.raises(UserError, match=r"several YOLO files \(more\.yml, other\.yaml\)"):
        load_dataset(root)


def test_labels_and_images_that_do_not_belong_together(yolo):
    root = yolo()
    put(root, "y", text=None)
    assert [len(sample.target) for sample in load_dataset(root).samples] == [1, 0]
    (root / "labels" / "z.txt").write_text("0 .5 .5 .5 .5\n")
    with pytest.raises(UserError, match=r"1 label files have no image: z\.txt in .*labels"):
        load_dataset(root)
    for file in (root / "labels").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"none of 2 images has a label file\. Looked in: .*labels"):
        load_dataset(root)


def test_a_listed_image_that_is_missing(yolo):
    root = yolo(config="names: [a]\ntrain: list.txt\n")
    (root / "list.txt").write_text("images/x.png\nimages/gone.png\n")
    with pytest.raises(UserError, match=r"1 of 2 images are missing: .*gone\.png"):
        load_dataset(root)
