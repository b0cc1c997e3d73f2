"""The command line: ``retinanet COMMAND``. Each command is one function of the package, with the same parameters."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress

from retinanet import __version__

# command -> what it does; the module retinanet.cli.COMMAND has its run(arguments)
COMMANDS = {
    "demo": "render a data set, train, evaluate and predict: the whole road in a few minutes",
    "check": "before training: is the data sound, and do the anchors fit it?",
    "train": "learn from annotated images",
    "evaluate": "measure average precision on annotated images",
    "predict": "find objects in images",
    "diagnose": "after training: where does the loss go, what goes wrong, what would mending it be worth?",
    "export": "write a model for ONNX Runtime, OpenVINO or torch.export, with proof that it finds the same",
    "benchmark": "measure every way to run a model on this machine: AP, latency, images/s, memory, size",
    "convert": "make a model of somebody's RetinaNet weights, or write one for torchvision",
    "why": "say what happened to every annotated box of an image",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, what the command says, 2 after a user's mistake, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"retinanet {__version__}")
        return 0
    if words[0] not in COMMANDS:
        import difflib

        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else "."
        print(f"retinanet: unknown command {words[0]!r}{hint}\n\n{overview()}", file=sys.stderr)
        return 2
    return _guarded(words[0], words[1:])


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: retinanet COMMAND ...",
            "",
            "RetinaNet: dense object detection with focal loss (arXiv 1708.02002).",
            "",
            *lines,
            "",
            "retinanet COMMAND --help shows its options.",
        ]
    )


def _guarded(command: str, words: list[str]) -> int:
    """Run one command; a user's mistake becomes a message instead of a traceback."""
    module = importlib.import_module(f"retinanet.cli.{command}")
    from retinanet.types import Interrupted, UserError

    try:
        code = module.run(words) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Interrupted as error:
        return _stop(command, str(error), 130)
    except UserError as error:
        return _stop(command, str(error), 2)
    except BrokenPipeError:  # whoever reads the output has seen enough, as head does
        sys.stdout = None  # or Python would complain when it flushes
        return 0
    except KeyboardInterrupt:
        return _stop(command, "interrupted", 130)
    except SystemExit as stop:  # --help, once it is printed
        return stop.code if isinstance(stop.code, int) else 0


def _stop(command: str, reason: str, code: int) -> int:
    """Say why a command stops; whoever reads may be gone, as ``tee`` is after Ctrl-C."""
    with suppress(OSError):
        print(f"retinanet {command}: {reason}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
