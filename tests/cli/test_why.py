"""``retinanet why`` as a person sees it."""

import json

from retinanet.cli.main import main


def test_from_the_words_to_the_report(trained, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["why", str(trained), str(data / "test" / "test_0.png"), "--device", "cpu", "--score=0.999"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0] == "0 of 2 boxes found by 0 detections" and len(lines) == 5
    assert all(line.startswith(("  #0 ", "  #1 ")) for line in lines[1:3])
    assert lines[-1] == "report.html, why.json and why.png are in why"
    assert {path.name for path in (tmp_path / "why").iterdir()} == {"report.html", "why.json", "why.png"}
    assert json.loads((tmp_path / "why" / "why.json").read_text())["about"]["score"] == 0.999
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "retinanet why: --output why holds results already (report.html). Choose another --output or pass --overwrite\n"
    )
    words += ["--overwrite", "--data", str(data / "annotations" / "instances_test.json")]
    assert main(words) == 0


def test_mistakes_are_one_line(trained, data, tmp_path, capsys):
    words = ["why", str(trained), str(data / "val" / "val_0.png"), "--output", str(tmp_path / "out")]
    assert main([*words, "--data", str(data / "annotations" / "instances_test.json")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("retinanet why: ") and "is not among the 3 annotated images" in err
    assert main(["why", str(trained)]) == 2
    assert "missing: image. usage: retinanet why MODEL IMAGE" in capsys.readouterr().err
