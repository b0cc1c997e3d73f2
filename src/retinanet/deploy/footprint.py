"""How much memory a model takes, in a process of its own: ``python -m retinanet.deploy.footprint``.

Nothing but what the model needs is imported, so that an exported model is measured without torch.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retinanet.inference.predictor import Predictor

_log = logging.getLogger(__name__)


def peak_memory(model: str, options: dict[str, Any], images: Sequence[Path]) -> float | None:
    """Peak memory in MB of a process that loads a model and predicts some images, one by one; None if it failed.

    Args:
        model: for :meth:`Predictor.load`.
        options: likewise; ``{"torchvision": True}`` is torchvision's own network with the weights of a model folder.
        images: paths.
    """
    words = json.dumps([model, options, [str(path) for path in images]])
    command = [sys.executable, "-m", "retinanet.deploy.footprint", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        _log.warning("the memory of %s could not be measured: %s", model, reason[-1] if reason else done.returncode)
        return None
    return float(done.stdout.split()[-1])


def _peak() -> float:
    """MB; from the kernel where it tells, because ``ru_maxrss`` begins with the memory of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.partition(":")[::2] for line in status.read_text(encoding="utf-8").splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _main() -> None:
    model, options, images = json.loads(sys.argv[1])
    if options.get("torchvision"):
        from retinanet.deploy.peer import TorchvisionBackend
        from retinanet.detector import Detector

        predictor = Predictor(TorchvisionBackend(Detector.load(model)))
    else:
        predictor = Predictor.load(model, **options)
    for image in images:
        predictor(image)
    print(_peak())


if __name__ == "__main__":
    _main()
