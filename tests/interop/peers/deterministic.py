"""Weights and pictures that depend on nothing but their names, so that no fixture has to store them.

``make.py`` fills the real networks with them, the tests fill the same state dict by the key lists (``<source>.json``)
and convert it. ``numpy.random.RandomState`` is frozen by numpy's compatibility policy: the streams do not change.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent

# The output layers of the four sources without ".weight" and ".bias", and the gain of their weights: chosen so that
# some class logits exceed 0.05 and most box deltas stay below 1.
CLASS_OUTPUTS = {
    "classificationModel.output": 0.55,
    "head.cls_score": 0.8,
    "bbox_head.retina_cls": 0.8,
    "cls_head.8": 0.5,
}
BOX_OUTPUTS = {"regressionModel.output": 0.3, "head.bbox_pred": 0.3, "bbox_head.retina_reg": 0.3, "box_head.8": 0.2}
CLASS_BIAS, CLASS_SPREAD = -7.3, 0.5
# The pyramid's entrances. On the 2x3 and 1x2 grids of P6 and P7 a 3x3 convolution sees mostly padding and the towers
# would fade out, so these levels start larger.
LATERALS = ("lateral", "fpn.P5_1", "fpn.P4_1", "fpn.P3_1")
DEEP_LEVELS = {
    "fpn.P6": 0.5,
    "backbone.top_block.p6": 0.5,
    "neck.fpn_convs.3.conv": 0.5,
    "backbones.ResNet50FPN.pyramid6": 0.5,
    "fpn.P7_2": 4.0,
    "backbone.top_block.p7": 28.0,
    "neck.fpn_convs.4.conv": 10.0,
    "backbones.ResNet50FPN.pyramid7": 18.0,
}
LATERAL_GAIN = 1 / 16
# The last convolution of a residual branch is damped, or sixteen blocks in a row would grow without bound.
BRANCH_GAIN = 0.35
# Not weights: the network computes with them as it was built.
CONSTANTS = ("cell_anchors", "pixel_mean", "pixel_std", "data_preprocessor.")


def stream(name: str) -> np.random.RandomState:
    """The random stream that belongs to a name.

    Args:
        name: any text, such as a state-dict key.

    Returns:
        A generator seeded with the text's CRC-32.
    """
    return np.random.RandomState(zlib.crc32(name.encode()))


def fill(state: dict[str, Tensor], stem_gain: float = 1.0) -> dict[str, Tensor]:
    """New values for a state dict, drawn from each key's own stream.

    Args:
        state: a state dict with the source's own key names; only names, shapes and dtypes matter, except that
            constant buffers (anchors, pixel means) are copied.
        stem_gain: factor of the 7x7 stem convolution; 1/64 for networks that read 0 to 255, so that the
            activations behind it are of the same size as for those that read 0 to 1.

    Returns:
        A new dict with the same keys, shapes and dtypes. Integer tensors are zero.
    """
    return {key: _value(key, value, stem_gain) for key, value in state.items()}


def _value(key: str, old: Tensor, stem_gain: float) -> Tensor:
    if any(word in key for word in CONSTANTS):
        return old.clone()
    if not old.is_floating_point():
        return torch.zeros_like(old)
    random, shape = stream(key), tuple(old.shape)
    if key.endswith("running_var") or (old.ndim == 1 and key.endswith("weight")):
        new = random.uniform(0.5, 1.5, shape)
    elif old.ndim == 1:  # bias and running_mean
        new = random.normal(0.0, 0.1, shape)
        if key.removesuffix(".bias") in CLASS_OUTPUTS:
            new = 10 * CLASS_SPREAD * new + CLASS_BIAS
    else:
        new = random.normal(0.0, _gain(key, shape, stem_gain) * np.sqrt(2.0 / np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(new, dtype=np.float32)).to(old.dtype)


def _gain(key: str, shape: tuple[int, ...], stem_gain: float) -> float:
    module = key.removesuffix(".weight")
    named = CLASS_OUTPUTS | BOX_OUTPUTS | DEEP_LEVELS
    if module in named:
        return named[module]
    if any(word in module for word in LATERALS):
        return LATERAL_GAIN
    if shape[-1] == 7:
        return stem_gain
    return BRANCH_GAIN if module.endswith(".conv3") and "Model" not in module else 1.0


def empty_state(source: str) -> dict[str, Tensor]:
    """The state dict of a source's real ResNet-50 model, from its stored key list.

    Args:
        source: the stem of a JSON file beside this one, such as ``"detectron2"``.

    Returns:
        Zero tensors under the real names, with the real shapes and dtypes. Pass it through `fill`.
    """
    rows = json.loads((HERE / f"{source}.json").read_text(encoding="utf-8"))["keys"]
    return {row[0]: torch.zeros(row[1], dtype=getattr(torch, row[2] if len(row) > 2 else "float32")) for row in rows}


def picture(height: int, width: int, variant: int = 0) -> np.ndarray:
    """A picture with edges at many scales: coloured tiles of 8, 24 and 64 pixels and a little noise.

    Args:
        height: rows in pixels.
        width: columns in pixels.
        variant: another number is another picture.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    random = stream(f"picture {height}x{width} {variant}")
    total = random.uniform(-12.0, 12.0, (height, width, 3))
    for tile, strength in ((8, 40.0), (24, 60.0), (64, 70.0)):
        tiles = random.uniform(-strength, strength, (height // tile + 1, width // tile + 1, 3))
        total += np.repeat(np.repeat(tiles, tile, axis=0), tile, axis=1)[:height, :width]
    return np.clip(np.rint(total + 128.0), 0, 255).astype(np.uint8)


def photo() -> np.ndarray:
    """The image for a whole run with a source's own preprocessing: its sides are no multiples of anything.

    Returns:
        (97, 130, 3) uint8, RGB.
    """
    return picture(97, 130, variant=1)


def network_input(size: tuple[int, int], stem_gain: float = 1.0) -> Tensor:
    """A batch for the bare network that needs no source's normalisation; every value is exact in float32.

    Args:
        size: height and width, as the fixture says.
        stem_gain: as for `fill`; the input is divided by it.

    Returns:
        (1, 3, height, width) float32, about -2 to 2 divided by ``stem_gain``.
    """
    pixels = torch.from_numpy(picture(*size, variant=6)).permute(2, 0, 1)[None].contiguous().float()
    return (pixels - 127.5) / 64.0 / stem_gain


def positions(name: str, count: int, wanted: int = 64) -> np.ndarray:
    """The places of a flattened tensor whose values a fixture keeps.

    Args:
        name: the tensor's name in the fixture, such as ``"logits.p3"``.
        count: elements of the tensor.
        wanted: how many places.

    Returns:
        (wanted,) int64 indices below ``count``; repeated ones are possible.
    """
    return stream("positions " + name).randint(0, count, wanted).astype(np.int64)
