import pytest
from PIL import Image

from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError


@pytest.fixture
def table(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")

    def write(text, name="boxes.csv"):
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def boxes_of(root, **options):
    dataset = load_dataset(root, **options)
    return {
        sample.path.name: [
            (dataset.class_names[label], *box)
            for label, box in zip(sample.target.labels, sample.target.boxes.tolist(), strict=True)
        ]
        for sample in dataset.samples
    }


WANTED = {"a.png": [("x", 1, 2, 5, 6), ("y", 2, 3, 6, 7)], "b.png": []}
ROWS = ["a.png,1,2,5,6,x", "b.png,,,,,", "a.png,2,3,6,7,y"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(ROWS),
        "\r\n".join(ROWS) + "\r\n",
        "\n\n".join(ROWS),
        "\ufeff" + "\n".join(ROWS),
        "\n".join(ROWS).replace(",", ";"),
        "\n".join(ROWS).replace(",", "\t"),
        "\n".join(ROWS).replace(",", ", "),
        "\n".join([ROWS[1], ROWS[0], ROWS[2]]),
        "\n".join(ROWS).replace("a.png", '"a.png"').replace("x", '"x"'),
        "\n".join(ROWS).replace("a.png", "./a.png", 1),
        "path,x1,y1,x2,y2,class\n" + "\n".join(ROWS),
        "File_Name,left,top,right,bottom,CATEGORY\n" + "\n".join(ROWS),
        "class,remark,file,x_max,x_min,y_max,y_min\nx,hi,a.png,5,1,6,2\n,,b.png,,,,\ny,,a.png,6,2,7,3\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,20,10,x,1,2,5,6\na.png,20,10,y,2,3,6,7\nb.png,20,10,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,,,x,1,2,5,6\na.png,,,y,2,3,6,7\nb.png,,,,,,,\n",
    ],
)
def test_dialects(table, text):
    root = table(text)
    assert splits(root) == () and boxes_of(root) == boxes_of(root / "boxes.csv") == WANTED


def test_other_tables_in_the_folder_are_passed_over(table):
    root = table("\n".join(ROWS))
    table("epoch,loss\n1,2\n", "results.csv")
    table("", "empty.csv")
    table(b"\xff\xfe\0\0", "binary.csv")
    assert boxes_of(root) == WANTED


@pytest.mark.parametrize("name", ["a,b.png", "a;b;c;d;e;f.png", "ä b.png"])
@pytest.mark.parametrize("mark", [",", ";"])
def test_odd_file_names(table, name, mark):
    root = table(mark.join([f'"{name}"', "1", "2", "5", "6", "x"]))
    Image.new("RGB", (20, 10)).save(root / name)
    assert boxes_of(root) == {name: [("x", 1, 2, 5, 6)]}


@pytest.mark.parametrize("folder", ["images", "train", "images/train", "JPEGImages"])
def test_where_images_are_looked_for(table, folder):
    root = table("c.png,1,2,5,6,x", "train.csv")
    (root / folder).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(root / folder / "c.png")
    assert splits(root) == ("train",)
    assert load_dataset(root, "train").samples[0].path == root / folder / "c.png"


def test_absolute_paths(table, tmp_path):
    assert boxes_of(table(f"{tmp_path}/a.png,1,2,5,6,x")) == {"a.png": [("x", 1, 2, 5, 6)]}


def test_classes_are_those_of_all_files(table):
    table("a.png,1,2,5,6,x", "train.csv")
    root = table("b.png,1,2,5,6,w", "val.csv")
    for split in ("train", "val"):
        assert load_dataset(root, split).class_names == ("w", "x")


def test_an_image_in_two_files(table):
    table("a.png,1,2,5,6,x", "train.csv")
    root = table("a.png,1,2,5,6,x", "val.csv")
    assert len(load_dataset(root, "val")) == 1
    with pytest.raises(UserError, match=r"val\.csv, line 1: a\.png is in .*train\.csv too \(line 1\)\. Name one split"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("name", "text"),
    [("classes.csv", "y,0\nz,2\nx,1\n"), ("class_list.csv", "y,0\nx,1\nz,2"), ("classes.txt", "y\nx\nz")],
)
def test_a_file_of_classes(table, name, text):
    root = table("\n".join(ROWS))
    table(text, name)
    dataset = load_dataset(root)
    assert dataset.class_names == ("y", "x", "z") and dataset.samples[0].target.labels.tolist() == [1, 0]
    table(text.replace("x", "w"), name)
    with pytest.raises(UserError, match=r"boxes\.csv, line 1: class x is not declared\. Expected: y, w, z"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n", r"classes\.csv, line 1: x\. Expected a class name and an id"),
        ("x,0\ny,0\n", r"classes\.csv, line 2: y,0\. Expected .* id of its own"),
        ("x,0\ny,one\n", r"line 2: y,one"),
        ("x,0\ny,-1\n", r"line 2: y,-1"),
        ("x,0\ny," + "1" * 5000, r"line 2: y,111"),
        ("x,1\ny,2\n", r"the ids are 1, 2\. Expected 0 to 1"),
    ],
)
def test_a_faulty_file_of_classes(table, text, message):
    table("\n".join(ROWS))
    with pytest.raises(UserError, match=message):
        load_dataset(table(text, "classes.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,1,2,5,6,x\na.png,1,2,5,x\n", r"boxes\.csv, line 2: has 5 fields, the first line 6"),
        ("a.png,1,2,5,6,x\na.png,1,2,5,6,x,7\n", r"line 2: has 7 fields"),
        ("a.png,1,2,5,6,x\n\na.png,1,two,5,6,x\n", r"line 3: the corners are 1, two, 5, 6\. Expected four numbers"),
        ("a.png,1,2,5,6,x\na.png,1,,5,6,x\n", r"line 2: the corners are 1, empty, 5, 6"),
        ("a.png,1,2,5,6,x\na.png,,,,,x\n", r"line 2: the corners are empty, empty"),
        ("a.png,1,2,5,6,x\na.png,1,2,5,6,\n", r"line 2: the box has no class"),
        ("a.png,1,2,5,6,x\n,1,2,5,6,x\n", r"line 2: names no image"),
        ('a.png,1,2,5,6,x\na.png,1,2,5,6,"x\n', r"line 2: broken CSV \(unexpected end of data\)"),
        ('a.png,1,2,5,6,x\n"a".png,1,2,5,6,x\n', r"line 2: broken CSV"),
        ("a.png,1,2,5,6," + "x" * 200_000, r"line 1: broken CSV \(field larger"),
        ("path,x1,y1,x2,class\na.png,1,2,5,x\n", r"line 1: the columns path, .* are not understood: ymax missing"),
        ("a,b\n1,2\n", r"line 1: the columns a, b are not understood: image_path, xmin, .* missing\. Expected path,x1"),
        (
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,20,10,x,1,2,5,6\na.png,21,10,x,1,2,5,6\n",
            r"line 3: the size of a\.png is not that of line 2",
        ),
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.png,x,10,x,1,2,5,6\n", r"line 2: width x and height 10"),
        ("a.png,1,2,5,6,x\nb\0.png,1,2,5,6,x\n", r"1 of 2 images are missing: .*b\\x00\.png"),
        (b"a.png,1,2,5,6,x\n\xff.png,1,2,5,6,x\n", r"line 2: is not UTF-8"),
    ],
)
def test_faulty_lines(table, text, message):
    root = table(text)
    with pytest.raises(UserError, match=message):
        load_dataset(root / "boxes.csv")
