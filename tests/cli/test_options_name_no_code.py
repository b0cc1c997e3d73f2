"""Options are values: no file, command line or environment makes the parser import or run code."""

import sys
from pathlib import Path

import pytest

from retinanet.cli.main import main

CALL = "{class_path: subprocess.Popen, init_args: {args: touch canary, shell: true}}"
IMPORT = "{class_path: canary_module.X}"
COMMANDS = {"train": ["train", "data", "--output", "out"], "convert": ["convert", "w.pth", "out"]}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a module that leaves a mark when it is imported, where Python would find it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    (tmp_path / "canary_module.py").write_text("import pathlib\npathlib.Path('canary').touch()\nclass X: pass\n")
    yield tmp_path
    assert "canary_module" not in sys.modules and not (tmp_path / "canary").exists()


def refusal(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


FILES = {
    "a call": f"architecture: {{x: {CALL}}}",
    "an import": f"architecture: {{x: {IMPORT}}}",
    "the mapping itself": f"architecture: {CALL}",
    "deep": f"architecture: {{a: {{b: {{c: {{d: {CALL}}}}}}}}}",
    "in a list": f"architecture: {{x: [1, [2, {CALL}]]}}",
    "block style": "architecture:\n  x:\n    class_path: subprocess.Popen\n    init_args:\n      args: touch canary\n",
    "JSON": '{"architecture": {"x": {"class_path": "canary_module.X", "init_args": {}}}}',
    "JSON with escapes": '{"architecture": {"x": {"cl\\u0061ss_path": "canary_module.X"}}}',
    "a dotted key": "architecture.x.class_path: canary_module.X",
    "a dotted key inside": "architecture: {x.class_path: canary_module.X}",
    "init_args alone": "architecture: {x: {init_args: {args: touch canary}}}",
    "dict_kwargs": "architecture: {x: {dict_kwargs: {args: touch canary}}}",
    "a path": "architecture: {x: {__path__: canary_module.X}}",
    "a merge key": f"architecture: {{x: {{<<: {CALL}}}}}",
    "an anchor": f"architecture: {{x: &a {CALL}}}",
    "a text with YAML": 'architecture: {x: "{class_path: canary_module.X}"}',
    "a text with escaped YAML": "architecture: {x: '{\"cl\\x61ss_path\": canary_module.X}'}",
    "a block of text": "architecture:\n  x: |\n    class_path: canary_module.X\n",
    "a tag": "architecture: {x: !!python/object/apply:os.system [touch canary]}",
    "a module": "architecture: {x: !!python/module:canary_module }",
    "an unknown option": f"nothing: {CALL}",
    "the top": CALL,
}
GROUPS = {  # train has groups of options
    "a group": f"image: {CALL}",
    "a group imports": f"image: {IMPORT}",
    "a class in place of a group": "image: canary_module.X",
    "a value in a group": f"image: {{short: {IMPORT}}}",
    "a dotted group": "image.class_path: canary_module.X",
    "a plain option": f"model: {IMPORT}",
}
CASES = [(command, text) for command in COMMANDS for text in FILES.values()]
CASES += [("train", text) for text in GROUPS.values()]


@pytest.mark.parametrize(("command", "text"), CASES)
def test_a_file_names_no_code(capsys, command, text):
    Path("c.yaml").write_text(text)
    message = refusal(capsys, *COMMANDS[command], "--config", "c.yaml")
    assert message.startswith(f"retinanet {command}: c.yaml"), message
    assert any(advice in message for advice in ("Remove it", "expected names with values", "Correct the line")), message


@pytest.mark.parametrize("suffix", [".json", ".yml", ".jsonnet", ".toml", ""])
def test_the_ending_of_the_file_does_not_matter(capsys, suffix):
    Path(f"c{suffix}").write_text('{"architecture": {"x": {"class_path": "canary_module.X"}}}')
    assert f"c{suffix}: 'class_path' names code" in refusal(capsys, *COMMANDS["train"], "--config", f"c{suffix}")


def test_every_file_is_looked_at(capsys):
    Path("good.yaml").write_text("architecture: {norm: batch}\n")
    Path("bad.yaml").write_text(f"architecture: {{x: {CALL}}}\n")
    for files in (["good.yaml", "bad.yaml"], ["bad.yaml", "good.yaml"]):
        words = [word for file in files for word in ("--config", file)]
        assert "bad.yaml: 'class_path' names code" in refusal(capsys, *COMMANDS["train"], *words)


@pytest.mark.parametrize("key", ["config", "image", "architecture"])
def test_a_file_names_no_other_file(capsys, key):
    Path("inner.yaml").write_text(f"x: {CALL}\n")
    Path("c.yaml").write_text(f"{key}: inner.yaml\n")
    message = refusal(capsys, *COMMANDS["train"], "--config", "c.yaml")
    assert "c.yaml: " in message and ("unknown option config" in message or "expected names with values" in message)


@pytest.mark.parametrize(
    "words",
    [
        ["--architecture.x.class_path=canary_module.X"],
        ["--architecture.class_path", "canary_module.X"],
        ["--architecture.x.init_args.args=touch canary"],
        ["--architecture", '{"x": {"class_path": "canary_module.X"}}'],
        ["--architecture", CALL],
        ["--architecture", "canary_module.X"],
        ["--architecture", "inner.yaml"],
        ["--architecture.x", CALL],
        ["--architecture.x.y=[" + CALL + "]"],
        ["--image.class_path", "canary_module.X"],
        ["--image", "canary_module.X"],
        ["--image=canary_module.X"],
        ["--image", IMPORT],
        ["--image", "inner.yaml"],
        ["--image.short", IMPORT],
        ["--model", IMPORT],
        ["--config", CALL],
        ["--config", "architecture: {x: " + CALL + "}"],
        ["--image.help=canary_module.X"],
        ["--image.help", "canary_module.X"],
    ],
)
def test_the_command_line_names_no_code(capsys, words):
    Path("inner.yaml").write_text(CALL)
    message = refusal(capsys, *COMMANDS["train"], *words)
    option = words[0].partition("=")[0]
    assert option in message or "--config" in option, message
    assert any(
        part in message for part in ("Remove it", "expected names with values", "expected a ", "unknown option")
    ), message


@pytest.mark.parametrize("name", ["ARCHITECTURE", "IMAGE", "IMAGE__CLASS_PATH", "CONFIG"])
def test_the_environment_is_not_read(capsys, monkeypatch, name):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for prefix in ("", "RETINANET_", "RETINANET_TRAIN_", "RETINANET TRAIN_"):
        monkeypatch.setenv(f"{prefix}{name}", IMPORT)
    assert "data" in refusal(capsys, *COMMANDS["train"])  # there is no such folder: the only fault


@pytest.mark.parametrize("text", [BOMB, f"architecture:\n  {BOMB.replace(chr(10), chr(10) + '  ')}", "model: &a [*a]"])
def test_aliases_are_refused(capsys, text):
    Path("c.yaml").write_text(text)
    message = refusal(capsys, *COMMANDS["train"], "--config", "c.yaml")
    assert "c.yaml, line" in message and "write it out" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: " + b"x" * 100_000, "over 100,000 bytes"),
        (b"[" * 50_000, "nested too deeply"),
        (b"model: " + b"[" * 3_000 + b"]" * 3_000, "nested too deeply"),
        (b"epochs: " + b"9" * 50_000, "cannot be read as YAML"),
    ],
)
def test_monstrous_files_are_refused(capsys, content, expected):
    Path("c.yaml").write_bytes(content)
    message = refusal(capsys, *COMMANDS["train"], "--config", "c.yaml")
    assert message.startswith("retinanet train: c.yaml") and expected in message and len(message) < 500


def test_values_arrive_as_they_were_written():
    from retinanet.cli.arguments import parse
    from retinanet.interop.convert import convert

    Path("c.yaml").write_text(
        "weights: w.pth\noutput: 2026-01-02\noverwrite: true\nsource: null\n"
        "architecture: {prior: 1e-3, clip: .inf, sizes: &same [1, 2.5], none: ~}\n"
    )
    arguments = parse(convert, ["--config", "c.yaml"], positionals=["weights", "output"], usage="x")
    assert arguments["output"] == "2026-01-02" and arguments["overwrite"] is True and arguments["source"] is None
    assert arguments["architecture"] == {**{"prior": 1e-3, "clip": float("inf"), "sizes": [1, 2.5], "none": None}}
