"""What each part of the default recipe is worth, and what else was tried: a row for each switch.

    python benchmarks/recipe.py DATA BACKBONE.safetensors [--rows default "IoU matching" ...] [--seeds 0 1 2]
        [--short 384] [--long 512] [--epochs 12] [--model lite] [--output runs/recipe]

DATA has a split ``test`` and one of ``trainval`` and ``train``, BACKBONE the ImageNet weights of timm's
tf_efficientnet_lite0. A run that is complete is not run again, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

from retinanet.data.transforms import Augment
from retinanet.losses.config import CLASSIC
from retinanet.training.config import LossConfig, OptimConfig, PostprocessConfig
from settings import Setting

FLIPS = {"hflip": 0.5, "vflip": 0.5}
ALONE = PostprocessConfig(vote=0.0)  # boxes of detections are their own
FOCAL = LossConfig(classification="focal")
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "no vote": {"postprocess": ALONE},
    "focal": {"loss": FOCAL},
    "focal, no vote": {"loss": FOCAL, "postprocess": ALONE},
    "paper's loss, no vote": {"loss": CLASSIC, "postprocess": ALONE},
    "paper's loss": {"loss": CLASSIC},
    "IoU matching": {"loss": LossConfig(matching="iou")},
    "smooth L1": {"loss": LossConfig(box="smooth_l1", box_weight=1.0)},
    "GIoU of weight 1": {"loss": LossConfig(box_weight=1.0)},
    "ATSS of 4 cells": {"loss": LossConfig(cells=4)},
    "turns": {"augment": Augment(**FLIPS, turn=0.5)},
    "zoom": {"augment": Augment(**FLIPS, zoom=(0.6, 1.6))},
    "mosaic": {"augment": Augment(**FLIPS, mosaic=0.5)},
    "paste": {"augment": Augment(**FLIPS, paste=0.5)},
    "no average of weights": {"optim": OptimConfig(warmup=50, ema=0.0)},
    "batch of 4, rate as of 8": {"batch_size": 4, "optim": OptimConfig(warmup=50, lr_batch=4)},
    "rate of 1e-3": {"optim": OptimConfig(warmup=50, lr=1e-3)},
    "one anchor per cell": {"architecture": {"anchors": {"ratios": [1.0], "scales": [1.0]}}},
    "He": {"architecture": {"head_init": "he"}},
    "group norm": {"architecture": {"head_norm": "group"}},
    "group norm, focal, no vote": {"architecture": {"head_norm": "group"}, "loss": FOCAL, "postprocess": ALONE},
    "depthwise": {"architecture": {"depth": 4, "depthwise": True, "head_init": "he"}},
    "depthwise, focal, no vote": {
        "architecture": {"depth": 4, "depthwise": True, "head_init": "he"},
        "loss": FOCAL,
        "postprocess": ALONE,
    },
    "shared, one anchor per cell": {
        "architecture": {"shared": True, "anchors": {"ratios": [1.0], "scales": [1.0]}},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    Setting.add_arguments(parser, "runs/recipe")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    options = parser.parse_args()
    Setting.of(options).measure_all({name: ROWS[name] for name in options.rows})


if __name__ == "__main__":
    main()
