"""``check``: the parts in one report. What each part finds is tested where it is computed."""

import json

import pytest

from retinanet import check
from retinanet.cli.main import main
from retinanet.errors import UserError

TINY = {"short": 64, "long": 96, "model": "resnet18"}


def words(**options):
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def test_a_sound_set(data, tmp_path, capsys):
    """The shapes are 12 to 30 pixels of 64: far too small for anchors of 32 and more."""
    assert main(["check", str(data), "--output", str(tmp_path / "out"), *words(**TINY)]) == 0
    text = capsys.readouterr().out
    assert "12 images (train 6, test 3, val 3)" in text and "anchors:" in text and "proposal:" in text
    assert f"report: {tmp_path / 'out' / 'report.html'}" in text
    numbers = json.loads((tmp_path / "out" / "check.json").read_text())
    assert numbers["anchors"]["boxes"] > 5 and numbers["about"]["images"] == "64 to 96 pixels"
    assert (
        numbers["proposal"]["changed"]
        and numbers["anchors"]["below_foreground"] > numbers["proposal"]["after"]["below_foreground"]
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<h2 id=") == 2 and page.count("data:image/png") >= 3


def test_the_proposal_is_taken_by_train(data, tmp_path, tiny_words):
    """From the file that check writes to the anchors of a trained model."""
    file = tmp_path / "anchors.yaml"
    result = check(str(data), output=str(tmp_path / "out"), write=str(file), **TINY)
    assert result.proposal.changed and f"--config {file}" in result.summary()
    drop = {"--architecture.anchors.sizes", "--image.short", "--image.long"}
    rest = [word for i, word in enumerate(tiny_words) if not ({word, tiny_words[i - 1]} & drop)]
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(file), *rest, "--epochs", "1"]
    assert main(command) == 0
    trained = json.loads((tmp_path / "run" / "config.json").read_text())
    for key, values in result.proposal.architecture_anchors.items():
        assert trained["architecture"]["anchors"][key] == pytest.approx(values)
    assert trained["preprocess"]["short"] == result.proposal.image["short"]


def test_a_set_that_stops_training(data_copy, tmp_path, capsys):
    """Exit code 1, the finding, and the anchors not judged; the fixed copy is sound."""
    (data_copy / "train" / "train_3.png").unlink()
    fixed = tmp_path / "fixed"
    command = ["check", str(data_copy), "--output", str(tmp_path / "out"), "--fix", str(fixed), *words(**TINY)]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "train_3.png" in text and "missing-image" in text and "training would stop here" in text
    assert main(["check", str(fixed), "--output", str(tmp_path / "again"), *words(**TINY)]) == 0
    assert "11 images" in capsys.readouterr().out


def test_a_model_folder_sets_anchors_and_size(trained, data, tmp_path):
    result = check(str(data), output=str(tmp_path / "out"), model=str(trained), pixels=False)
    assert result.anchors.lattice.sizes == (8, 16, 32, 64, 128) and result.anchors.preprocess.short == 64
    assert not result.stops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet5"}, "unknown model 'resnet5'"),
        ({"short": 0}, "0 < short <= long"),
        ({"architecture": {"anchors": {"size": [1]}}}, "did you mean 'sizes'"),
        ({"fix": "{data}"}, "--fix needs the images"),
        ({"fix": "{data}", "pixels": True}, "lies in the data set that is fixed"),
        ({"workers": 0}, "--workers: expected at least 1 thread"),
    ],
)
def test_mistakes(options, message, data, tmp_path):
    options = {key: value.format(data=data) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UserError) as caught:
        check(str(data), output=str(tmp_path / "out"), **{"pixels": False, **options})
    assert message.format(data=data) in str(caught.value)


def test_an_earlier_report_stays(data, tmp_path):
    check(str(data), output=str(tmp_path), pixels=False, **TINY)
    with pytest.raises(UserError, match="holds results already"):
        check(str(data), output=str(tmp_path), pixels=False, **TINY)
    check(str(data), output=str(tmp_path), pixels=False, overwrite=True, **TINY)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; expected the name of a folder"):
        check(str(data), output=str(tmp_path / "file"), **TINY)
    with pytest.raises(UserError, match="the file exists"):
        check(str(data), output=str(tmp_path / "new"), write=str(tmp_path / "file"), **TINY)


def test_nothing_to_learn_and_no_way_to_train(tmp_path, capsys):
    """A set without a box, and one of a single image, which cannot be split: errors in the report as on the console."""
    from PIL import Image

    for name, boxes, images in (("bare", [], 4), ("single", [[5, 5, 20, 20]], 1)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(images):
            Image.effect_noise((60, 40), 30 + number).save(folder / f"{number}.png")
        document = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in range(images)],
            "annotations": [
                {"id": n, "image_id": 0, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
                for n, box in enumerate(boxes)
            ],
            "categories": [{"id": 1, "name": "cell"}],
        }
        (folder / "annotations.json").write_text(json.dumps(document))
        assert main(["check", str(folder), "--output", str(tmp_path / f"{name}-out"), *words(**TINY)]) == 1
        slug = "nothing-to-learn" if name == "bare" else "no-training"
        assert slug in capsys.readouterr().out
        numbers = json.loads((tmp_path / f"{name}-out" / "check.json").read_text())
        assert numbers["doctor"]["findings"][0]["kind"] == slug
        assert "Nothing would stop training" not in (tmp_path / f"{name}-out" / "report.html").read_text()


def test_the_findings_are_kept_where_no_copy_is_written(data_copy, tmp_path):
    path = data_copy / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["bbox"][2] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"(?s)would lose .*All findings are in .*report\.html"):
        check(str(data_copy), output=str(tmp_path / "report"), fix=str(tmp_path / "fixed"))
    assert (tmp_path / "report" / "report.html").exists() and not (tmp_path / "fixed").exists()
