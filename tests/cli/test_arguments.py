"""Functions as command lines."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from retinanet.cli.arguments import parse
from retinanet.errors import UserError


@dataclass(frozen=True)
class Knobs:
    """Some knobs.

    Attributes:
        rate: how fast.
        kind: of what kind.
        wild: whether without limits.
        pair: two numbers.
    """

    rate: float | None = None
    kind: Literal["soft", "hard"] = "soft"
    wild: bool = False
    pair: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate < 0:
            raise UserError(f"knobs.rate: expected at least 0, got {self.rate}")


def work(
    source: str,
    files: list[str],
    *,
    output_folder: str = "out",
    count: int = 3,
    go_on: bool = False,
    make: dict[str, Any] | None = None,
    knobs: Knobs = Knobs(),
) -> None:
    """Does the work.

    Args:
        source: where it comes from.
        files: which ones.
        output_folder: where it goes.
        count: how many.
        go_on: whether to go on.
        make: changes.
        knobs: knobs.
    """


def told(*words, positionals=("source", "files")):
    return parse(work, [str(word) for word in words], positionals=positionals, usage="retinanet work SOURCE [x]")


def refusal(*words):
    with pytest.raises(UserError) as refused:
        told(*words)
    return str(refused.value)


def test_defaults():
    assert told("a", "b") == {
        "source": "a",
        "files": ["b"],
        "output_folder": "out",
        "count": 3,
        "go_on": False,
        "make": None,
        "knobs": Knobs(),
    }


@pytest.mark.parametrize("option", ["--output-folder", "--output_folder"])
def test_dashes_and_underscores(option):
    assert told("a", "b", option, "x-y_z")["output_folder"] == "x-y_z"
    assert told("a", "b", f"{option}=x-y=z")["output_folder"] == "x-y=z"


def test_positionals_stand_anywhere():
    found = told("--count", "5", "a", "--go-on", "b", "--output_folder=q", "c")
    assert (found["source"], found["files"], found["count"], found["go_on"]) == ("a", ["b", "c"], 5, True)


def test_positionals_may_be_named():
    assert told("b", "c", "--source", "a", positionals=("files",))["files"] == ["b", "c"]
    assert told("--source=a", "--files", '["b"]')["files"] == ["b"]


@pytest.mark.parametrize("name", ["it's.png", 'a "b".png', "a b,[c].png", "ünï.png", "{x: 1}", "null", "12", "a: b"])
def test_odd_names_arrive_as_they_are(name):
    found = told(name, name, "--output-folder", name)
    assert (found["source"], found["files"], found["output_folder"]) == (name, [name], name)


@pytest.mark.parametrize(("words", "value"), [(["--go-on"], True), (["--go_on", "false"], False), ([], False)])
def test_switches(words, value):
    assert told(*words, "a", "b")["go_on"] is value
    assert told("a", "b", *words)["go_on"] is value


def test_nested_options():
    found = told("a", "b", "--knobs.rate", "1e-3", "--knobs.wild", "c", "--knobs.pair", "[2, 3]", "--knobs.kind=hard")
    assert found["knobs"] == Knobs(rate=1e-3, kind="hard", wild=True, pair=(2.0, 3.0)) and found["files"] == ["b", "c"]
    assert told("a", "b", "--knobs.rate", "null")["knobs"].rate is None


def test_options_without_their_group():
    assert told("a", "b", "--rate", "0.5", "--wild")["knobs"] == Knobs(rate=0.5, wild=True)


def test_lists_with_commas_or_brackets():
    assert told("a", "--files", "b,c d")["files"] == told("a", "--files=[b, c d]")["files"] == ["b", "c d"]
    assert told("a", "--files", "b")["files"] == ["b"]
    assert told("a", "--files", "b", "c d")["files"] == told("--files", "b", "c d", "a")["files"] == ["b", "c d"]
    for words in (["[2, 3]"], ["2,3"], ["2", "3"], ["2,", "3"]):
        assert told("--knobs.pair", *words, "a", "b")["knobs"].pair == (2.0, 3.0)
        assert told("a", "b", "--pair", *words, "--wild")["knobs"].pair == (2.0, 3.0)
    for words in (["[8, 1.5]"], ["8,1.5"], ["8", "1.5"]):
        assert told("a", "b", "--make.sizes", *words)["make"] == {"sizes": [8, 1.5]}
    assert refusal("a", "--files", "[b, 1]") == "--files[1]: expected a text, got 1"


def test_other_names_of_an_option():
    options = {"positionals": ("source", "files"), "usage": "x", "aliases": {"from": "source"}}
    for words in (["--from", "a", "b"], ["b", "--from=a"]):
        found = parse(work, words, **options)
        assert (found["source"], found["files"]) == ("a", ["b"])


def test_the_printed_configuration_is_read_as_a_file(tmp_path, capsys):
    words = ["a", "b", "--knobs.rate", "1e-5", "--make.norm", "batch", "--go-on"]
    with pytest.raises(SystemExit) as stopped:
        told(*words, "--print_config")
    assert stopped.value.code == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert told("--config", tmp_path / "c.yaml") == told(*words)


def test_a_later_file_has_the_last_word(tmp_path):
    for name, content in {"a": "count: 1\nknobs: {rate: 1, wild: true}\n", "b": "count: 2\nknobs.rate: 3e1\n"}.items():
        (tmp_path / name).write_text(content)
    found = told("s", "f", "--config", tmp_path / "a", "--config", tmp_path / "b")
    assert found["count"] == 2 and found["knobs"] == Knobs(rate=30.0, wild=True)


def test_the_help_says_type_default_and_description(capsys):
    with pytest.raises(SystemExit):
        told("--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "--source SOURCE where it comes from. (required, type: str)" in out
    assert "--count COUNT how many. (type: int, default: 3)" in out
    assert "--knobs.kind {soft,hard} of what kind. (type: Literal['soft', 'hard'], default: soft)" in out
    assert "--knobs.rate RATE how fast. (type: float | null, default: null)" in out


def test_keys_of_a_mapping():
    assert told("a", "b", "--make.prior", "1e-3", "--make.name", "x y", "--make.flag=true")["make"] == {
        "prior": 1e-3,
        "name": "x y",
        "flag": True,
    }
    found = told("a", "b", "--make.norm", "batch", "--make.anchors.sizes", "[1, 2]", "--make.anchors.ratios=[1.5]")
    assert found["make"] == {"norm": "batch", "anchors": {"sizes": [1, 2], "ratios": [1.5]}}
    assert told("a", "b", "--make", '{"depth": 2}')["make"] == {"depth": 2}
    for words in (["--make", "{depth: 2}", "--make.norm", "x"], ["--make.norm", "x", "--make", "{depth: 2}"]):
        assert told("a", "b", *words)["make"] == {"depth": 2, "norm": "x"}


def test_the_command_line_has_the_last_word_over_a_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "source: s\ncount: 7\nfiles: [x]\nmake: {norm: batch, anchors: {sizes: [1]}}\nknobs: {rate: 1.0e-05}\n"
    )
    found = told("--config", file)
    assert (found["source"], found["files"], found["count"]) == ("s", ["x"], 7)
    assert found["knobs"] == Knobs(rate=1e-5) and found["make"] == {"norm": "batch", "anchors": {"sizes": [1]}}
    for words in (["t", "--count", "8", "--config", file], ["--config", file, "t", "--count", "8"]):
        found = told(*words, "--knobs.kind", "hard")
        assert (found["source"], found["count"], found["files"]) == ("t", 8, ["x"])
        assert found["knobs"] == Knobs(rate=1e-5, kind="hard")


def test_a_key_of_a_mapping_is_added_to_those_of_a_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("make: {norm: batch, anchors: {sizes: [1], ratios: [2]}}\n")
    found = told("a", "b", "--config", file, "--make.depth", "3", "--make.anchors.sizes", "[4]")
    assert found["make"] == {"norm": "batch", "depth": 3, "anchors": {"sizes": [4], "ratios": [2]}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cuont", "3"], ["unknown option --cuont, did you mean '--count'?"]),
        (["--knobs.rat", "3"], ["knobs.rat", "did you mean", "knobs.rate"]),
        (["--qqqqqq", "3"], ["unknown option --qqqqqq", "--help"]),
        (["-c", "3"], ["unknown option -c"]),
        (["--count", "abc"], ["--count", "a whole number", "abc"]),
        (["--count", "2.5"], ["--count", "a whole number", "2.5"]),
        (["--count"], ["option --count needs a value"]),
        (["--count", "--go-on"], ["option --count needs a value"]),
        (["--go-on=maybe"], ["--go_on", "true or false", "maybe"]),
        (["--knobs.kind", "firm"], ["--knobs.kind", "soft or hard", "firm"]),
        (["--knobs.rate", "-1"], ["knobs.rate: expected at least 0, got -1.0"]),
        (["--knobs.rate", "fast"], ["--knobs.rate", "a number or null", "fast"]),
        (["--knobs.pair", "[1]"], ["--knobs.pair", "[1]"]),
        (["--config", "none.yaml"], ["none.yaml", "not exist"]),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_command_line(words, expected, capfd):
    message = refusal("a", "b", *words)
    assert all(part in message for part in expected), message
    assert "\n" not in message and "<class" not in message and "typing." not in message
    assert capfd.readouterr() == ("", "")


def test_too_few_and_too_many():
    assert "missing: source, files" in refusal() and "usage: retinanet work SOURCE" in refusal()
    assert "missing: files" in refusal("a")
    with pytest.raises(UserError, match="unexpected argument 'b': expected SOURCE"):
        told("a", "b", "--files", "[]", positionals=("source",))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"count: [1,\n  b: {", ["line 2"]),
        (b"coutn: 3\n", ["unknown option coutn, did you mean 'count'?"]),
        (b"knobs:\n  kindd: hard\n", ["unknown option knobs.kindd, did you mean 'kind'?"]),
        (b"knobs:\n  kind: firm\n", ["knobs.kind", "soft or hard", "firm"]),
        (b"count: many\n", ["count", "a whole number", "many"]),
        (b"just words\n", []),
        (b"- a\n- b\n", []),
        (b"\xff\xfe\x00\n", []),
        (b"count: !!python/object/apply:os.system ['touch exploded']\n", []),
    ],
)
def test_faults_of_a_file_are_told_with_its_name(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    message = refusal("a", "b", "--config", "c.yaml")
    assert all(part in message for part in ["c.yaml", *expected]), message
    assert "\n" not in message and not (tmp_path / "exploded").exists()
