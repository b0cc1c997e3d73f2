"""The command line: ``retinanet COMMAND``. Each command is one function of the package, with the same parameters."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from typing import Any, NamedTuple

import retinanet
from retinanet.errors import Interrupted, UserError, make_printable, suggest


class Command(NamedTuple):
    """A function of the package as a command: what it does, parameters that need no name, how it is called."""

    about: str
    positionals: tuple[str, ...]
    usage: str


COMMANDS = {
    "demo": Command(
        "render a data set, train, evaluate and predict, in a few minutes", (), "[--output runs/demo] [options]"
    ),
    "check": Command("before training: is the data sound, and do the anchors fit it?", ("data",), "DATA [options]"),
    "plan": Command(
        "before training: what would be trained on this machine, and why", ("data",), "DATA [--budget 30m] [options]"
    ),
    "train": Command("learn from annotated images", ("data",), "DATA --output FOLDER [options]"),
    "evaluate": Command(
        "measure average precision on annotated images", ("model", "data"), "MODEL DATA [--split test] [options]"
    ),
    "predict": Command(
        "find objects in images or videos",
        ("model", "images"),
        "MODEL IMAGE|FOLDER|PATTERN|VIDEO|camera|rtsp://... --output FOLDER [options]",
    ),
    "diagnose": Command(
        "after training: where does the loss go, what goes wrong, what would fixing it be worth?",
        ("model", "data"),
        "MODEL DATA [--split val] [options]",
    ),
    "suspects": Command(
        "which annotations are probably wrong: missing, wrong class, loose, doubled, of nothing",
        ("model", "data"),
        "MODEL DATA [--split train] [options], or DATA --folds 3 [--budget 30m]",
    ),
    "suggest": Command(
        "which images to annotate next",
        ("model", "images"),
        "MODEL IMAGE|FOLDER|PATTERN... [--output next.csv] [--count 20] [--data DATA]",
    ),
    "export": Command(
        "write a model for ONNX Runtime, OpenVINO or torch.export, with proof that it finds the same",
        ("model",),
        "MODEL --format onnx|openvino|pt2 [--precision int8 --calibrate DATA] [--verify DATA]",
    ),
    "benchmark": Command(
        "measure every way to run a model on this machine: AP, latency, images/s, memory, size",
        ("model", "data"),
        "MODEL DATA [--split test] [--backends [torch-fp32,openvino-int8]] [options]",
    ),
    "convert": Command(
        "make a model of somebody's RetinaNet weights, or write one for torchvision",
        ("weights", "output"),
        "WEIGHTS|torchvision:NAME FOLDER [options], or MODEL FILE --to torchvision",
    ),
    "push": Command(
        "upload a model to the Hugging Face hub, with a card made from what its folder knows",
        ("model", "repository"),
        "MODEL OWNER/NAME [--license apache-2.0] [--tag v1] [--reports [out/test,diagnosis]] [--dry_run FOLDER]",
    ),
    "serve": Command(
        "answer requests over HTTP with a model, and show a page to try it", ("model",), "MODEL [--port 8000] [options]"
    ),
    "why": Command(
        "say what happened to every annotated box of an image",
        ("model", "image"),
        "MODEL IMAGE [--data DATA] [--score 0.3] [options]",
    ),
    "completion": Command("print a script that completes all this in a shell", ("shell",), "bash|zsh|tcsh"),
}
JSON = "--json"
HERE = {"demo": "retinanet.cli.demo", "completion": "retinanet.cli.completion"}  # the functions of no other package
NO_RESULT = ("serve", "completion")  # commands that have none to print as JSON
ALIASES = {"convert": {"from": "weights"}}  # which is no name for a parameter in Python
# What an installation from requirements-runner.txt lacks. What an extra brings is asked for where it is imported.
TRAINING = {"torch", "torchvision", "timm", "lightning_fabric", "faster_coco_eval", "safetensors", "huggingface_hub"}
TRAINING |= {"matplotlib", "jinja2"}
RUNNER = "Without torch, predict and serve take models that were exported to ONNX or OpenVINO"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, see ``docs/reference/json.md``: 0, 1, 2 or 130."""
    # Threads that wait must not spin: beside other work a training step took 3.3 s with the default and 2.1 s so, and
    # alone no longer than before (docs/results/planning.md). It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = answer(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Interrupted as error:
        return _stop(words, str(error), 130)
    except UserError as error:
        return _stop(words, str(error), 2)
    except ModuleNotFoundError as error:
        if (package := str(error.name).partition(".")[0]) not in TRAINING:
            raise
        return _stop(words, f"this needs {package}, which is not installed: pip install retinanet. {RUNNER}", 2)
    except BrokenPipeError:  # whoever reads the output has seen enough, as head does
        sys.stdout = None  # or Python would complain when it flushes
        return 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _stop(words, f"{error.filename}: the name is too long for a file", 2)
    except KeyboardInterrupt:
        return _stop(words, "interrupted", 130)
    except SystemExit as stop:  # --help, once it is printed
        return stop.code if isinstance(stop.code, int) else 0


def answer(words: Sequence[str]) -> int:
    """Tell what the commands are, or run one; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"retinanet {retinanet.__version__}")
        return 0
    if words[0] not in COMMANDS:
        reason = f"unknown command {words[0]!r}{suggest(words[0], COMMANDS)}"
        print(f"retinanet: {reason}\n\n{overview()}", file=sys.stderr)
        return _print_error(words, reason, 2)
    return run(words[0], words[1:])


def overview() -> str:
    """The commands, a line each."""
    about = "RetinaNet: dense object detection with focal loss (arXiv 1708.02002)."
    lines = [f"  {name:<10}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: retinanet COMMAND ...", "", about, "", *lines, "", "retinanet COMMAND --help shows its options."]
    )


def find_function(name: str) -> Callable[..., Any]:
    """The function of a command."""
    home = importlib.import_module(HERE[name]) if name in HERE else retinanet
    function: Callable[..., Any] = getattr(home, name)
    return function


def run(name: str, words: Sequence[str]) -> int:
    """Parse, call the function, print its result; returns the exit code."""
    from retinanet.cli.arguments import parse  # which would make ``retinanet --help`` slower

    _, positionals, usage = COMMANDS[name]
    usage, aliases, bases = f"retinanet {name} {usage}", ALIASES.get(name), {}
    if name in ("train", "plan"):
        from retinanet.training.recipes import find_recipe

        bases = {"recipe": find_recipe}
    as_json, words = JSON in words, [word for word in words if word != JSON]
    if as_json and name in NO_RESULT:
        raise UserError(f"{JSON} is for commands that print a result; {name} has none")
    function = find_function(name)
    arguments = parse(function, words, positionals=positionals, usage=usage, aliases=aliases, bases=bases)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # where libraries may print
        result = function(**arguments)
    if name == "train":
        from retinanet.training.ranks import is_first_process

        if not is_first_process():
            return 0
    failed = getattr(result, "failed", {})  # images that predict could not read, and why
    code = int(bool(failed) or getattr(result, "stops", False))
    if as_json:
        from retinanet.cli.records import make_record

        print(make_record(name, result, arguments, code))
    else:
        print(describe_result(name, result, arguments))
    if failed:
        videos = getattr(result, "videos", [])
        total, kind = len(failed) + len(videos or result), "videos" if videos else "images"
        print(f"{len(failed)} of {total} {kind} could not be read:", file=sys.stderr)
        for reason in failed.values():
            print(f"  {make_printable(reason)}", file=sys.stderr)
    return code


def describe_result(command: str, result: Any, arguments: Mapping[str, Any]) -> str:
    """What a person reads when a command is done."""
    output = arguments.get("output")
    match command:
        case "demo":
            return f"find objects with the model: retinanet predict {output}/model IMAGE --output out"
        case "train":
            ap = f"AP {result.ap:.3f}" if result.ap == result.ap else "AP not measured, no object to validate on;"
            lines = f"{result.folder}: {ap} after {result.steps} steps; curves in {result.folder}/curves.png"
            return f"{lines}\nfind objects with it: retinanet predict {result.folder} IMAGE"
        case "predict" if arguments["engine"] == "ray":
            return str(result)
        case "predict" if result.videos:
            written = "film, table and counts" if arguments["pictures"] else "table and counts"
            return "\n".join([*(video.summary() for video in result.videos), f"{written} are in {output}"])
        case "predict":
            objects = sum(len(prediction.detections) for prediction in result)
            written = "pictures, detections.json and .csv" if arguments["pictures"] else "detections.json and .csv"
            return f"{objects} objects in {len(result)} images; {written} are in {output}"
        case "why":
            return f"{result.summary()}\nreport.html, why.json and why.png are in {output}"
        case "serve":
            return "stopped"
        case "plan":
            how = f"--plan {arguments['write']}" if arguments["write"] else "with the same options"
            return f"{result.summary()}\ntrain it: retinanet train {arguments['data']} --output RUN {how}"
        case "check" | "diagnose" | "suspects" | "suggest":
            return str(result.summary())
    return str(result)


def _stop(words: Sequence[str], reason: str, code: int) -> int:
    """Say why a command stops; whoever reads may be gone, as ``tee`` is after Ctrl-C."""
    with suppress(OSError):
        print(f"retinanet {words[0]}: {make_printable(reason)}", file=sys.stderr, flush=True)
    return _print_error(words, reason, code)


def _print_error(words: Sequence[str], reason: str, code: int) -> int:
    """What a program reads where it asked for JSON."""
    if JSON in words:
        from retinanet.cli.records import make_error_record

        with suppress(OSError):
            print(make_error_record(words[0], reason, code), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
