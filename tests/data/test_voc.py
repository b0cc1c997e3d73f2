import pytest
from PIL import Image

from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError

BOX = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
CELL = f"<object><name>cell</name>{BOX}</object>"


def xml(*objects, filename="a.png", size="<size><width>20</width><height>10</height></size>"):
    return f"<annotation>\n<filename>{filename}</filename>\n{size}\n{''.join(objects)}\n</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Writes annotations by stem, an image for each, and lists of stems."""

    def write(lists=None, suffix="png", **texts):
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for stem, text in texts.items():
            (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
            Image.new("RGB", (20, 10)).save(tmp_path / "JPEGImages" / f"{stem}.{suffix}")
        for name, text in (lists or {}).items():
            (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
        return tmp_path

    return write


def test_pixels_are_counted_from_one_and_the_last_belongs_to_the_box(voc):
    whole = (
        "<object><name>all</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object>"
    )
    (sample,) = load_dataset(voc(a=xml(CELL, whole)), strict=True).samples
    assert sample.target.boxes.tolist() == [[2, 1, 9, 8], [0, 0, 20, 10]]
    assert sample.image_id == "a" and sample.areas.tolist() == [49, 200]


def test_a_box_without_extent_in_the_file_is_faulty(voc):
    flat = BOX.replace("<xmax>9", "<xmax>3")
    dataset = load_dataset(voc(a=xml(CELL, f"<object><name>cell</name>{flat}</object>")))
    assert len(dataset.samples[0].target) == 1
    assert "a.xml, object 2 (cell): box (3, 2, 3, 8) has x2 <= x1" in dataset.skipped[0].sentence


def test_difficult_objects_are_ignored(voc):
    objects = [f"<object><name>x</name><difficult>{text}</difficult>{BOX}</object>" for text in ("1", "0", "")]
    (sample,) = load_dataset(voc(a=xml(*objects))).samples
    assert sample.target.ignore.tolist() == [True, False, False]


def test_parts_of_objects_are_not_objects(voc):
    part = f"<part><name>head</name>{BOX.replace('3', '4')}</part>"
    dataset = load_dataset(voc(a=xml(f"<object>{part}<name>person</name>{BOX}</object>")))
    assert dataset.class_names == ("person",) and dataset.samples[0].target.boxes.tolist() == [[2, 1, 9, 8]]


def test_classes_are_those_of_the_whole_set(voc):
    other = xml(CELL.replace("cell", "axon"))
    root = voc(lists={"train": "a\n", "val": "b\n\n"}, a=xml(CELL), b=other)
    for split in ("train", "val"):
        assert load_dataset(root, split).class_names == ("axon", "cell")
    assert load_dataset(root, "train").samples[0].target.labels.tolist() == [1]


def test_lists_of_one_class_are_no_splits(voc):
    lists = {"train": "a", "val": "a", "trainval": "a", "cell_train": "a  1", "cell_trainval": "a -1", "fold_1": "a 1"}
    assert set(splits(voc(lists=lists, a=xml(CELL)))) == {"train", "val", "trainval", "fold_1"}


def test_the_image_named_like_the_file_comes_before_the_one_it_names(voc):
    root = voc(a=xml(CELL, filename="b.png"), b=xml(CELL, filename="nowhere.jpg"))
    assert [sample.path.name for sample in load_dataset(root).samples] == ["a.png", "b.png"]
    (root / "JPEGImages" / "a.png").rename(root / "JPEGImages" / "c d.png")
    (root / "Annotations" / "a.xml").write_text(xml(CELL, filename="C:\\images\\c d.png"))
    assert [sample.path.name for sample in load_dataset(root).samples] == ["c d.png", "b.png"]


def test_of_two_images_of_one_stem_the_named_one_is_taken(voc):
    root = voc(a=xml(CELL, filename="a.png"))
    Image.new("RGB", (5, 5)).save(root / "JPEGImages" / "a.bmp")
    assert load_dataset(root).samples[0].path.name == "a.png"


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>"])
def test_a_size_that_is_not_declared_is_read_from_the_image(voc, size):
    assert load_dataset(voc(a=xml(CELL, size=size))).samples[0].size == (10, 20)


def test_images_without_a_file_are_not_taken_for_empty_ones(voc):
    root = voc(a=xml(CELL), b=xml())
    (root / "Annotations" / "b.xml").unlink()
    dataset = load_dataset(root)
    (note,) = dataset.notes
    assert len(dataset) == 1 and "1 images have no XML file" in note and "b.png" in note and note in dataset.summary()


def test_files_listed_twice_or_missing(voc):
    root = voc(lists={"train": "a\nb\na\n", "val": "a\nc\nd\n"}, a=xml(CELL), b=xml(CELL))
    with pytest.raises(UserError, match=r"train\.txt, line 3: a is listed already in line 1"):
        load_dataset(root, "train")
    with pytest.raises(UserError, match=r"val\.txt, line 2: .* holds no c\.xml \(2 of 3 are missing\)"):
        load_dataset(root, "val")


def test_the_second_column_of_a_list_is_passed_over(voc):
    root = voc(lists={"train": "a  1\n"}, a=xml(CELL))
    assert len(load_dataset(root, "train")) == 1


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
THIEF = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<size>\n</annotation>", r"b\.xml, line 3, column 3: broken XML \(mismatched tag"),
        ("<annotation>", r"b\.xml, line 1, column 13: broken XML"),
        ("", r"b\.xml, line 1, column 1: broken XML"),
        (BOMB, r"b\.xml: unsafe XML is not read \(EntitiesForbidden\)"),
        (THIEF, r"b\.xml: unsafe XML is not read"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"b\.xml.* XML"),
        ("<annotations/>", r"b\.xml: the root element is not <annotation>"),
        (xml(f"<object>{BOX}</object>"), r"b\.xml, object 1: has no <name>"),
        (xml(CELL, f"<object><name> </name>{BOX}</object>"), r"b\.xml, object 2: has no <name>"),
        (xml("<object><name>x</name></object>"), r"b\.xml, object 1: <bndbox><xmin> is missing\. Expected a number"),
        (xml(CELL.replace("<xmax>9</xmax>", "")), r"object 1: <bndbox><xmax> is missing"),
        (xml(CELL.replace(">9<", ">nine<")), r"object 1: <bndbox><xmax> holds 'nine'"),
        (xml(CELL, size="<size><width>x</width><height>3</height></size>"), r"b\.xml: width x and height 3 are not"),
    ],
)
def test_faulty_files(voc, text, message):
    root = voc(a=xml(CELL), b=text)
    with pytest.raises(UserError, match=message):
        load_dataset(root)


def test_a_class_that_the_model_does_not_know(voc):
    root = voc(a=xml(CELL))
    with pytest.raises(UserError, match=r"object 1 \(cell\): the model does not know the class 'cell' \(it knows axon"):
        load_dataset(root, class_names=["axon"])


def test_a_set_of_nothing_but_broken_files_is_still_voc(voc):
    with pytest.raises(UserError, match=r"a\.xml, line 1, column 1: broken XML"):
        load_dataset(voc(a="garbage"))


def test_xml_of_other_tools_is_not_voc(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotations><image/></annotations>")
    with pytest.raises(UserError, match="none of the four"):
        splits(tmp_path)
