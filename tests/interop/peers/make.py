"""Make the fixtures of this folder with the real code of the other projects (see README.md).

With a checkout of the project on ``PYTHONPATH``, ``python make.py --source yhenon`` and so on writes ``<source>.json``
(names and shapes of the state dict) and ``<source>.npz`` (numbers) beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from deterministic import network_input, photo, positions, stream
from sources import SOURCES, Found, load
from torch import Tensor, nn

HERE = Path(__file__).parent


def write_keys(source: str, module: nn.Module) -> None:
    """Write the names, shapes and (where not float32) dtypes of a state dict."""
    rows = []
    for key, value in module.state_dict().items():
        kind = [] if value.dtype == torch.float32 else [str(value.dtype).removeprefix("torch.")]
        rows.append(json.dumps([key, list(value.shape), *kind]))
    (HERE / f"{source}.json").write_text('{"keys": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


def extremes() -> tuple[Tensor, Tensor]:
    """Anchors and deltas of which some are far outside what a network should say."""
    random = stream("extremes")
    corner, side = random.uniform(-20, 150, (24, 2)), random.uniform(8, 90, (24, 2))
    deltas = random.normal(0, 1, (24, 4)) * np.repeat([0.3, 2.0, 6.0], 8)[:, None]
    anchors = np.concatenate([corner, corner + side], 1)
    return torch.from_numpy(anchors.astype(np.float32)), torch.from_numpy(deltas.astype(np.float32))


def sample(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Shapes, means, standard deviations and 64 values of NCHW tensors."""
    flat = {name: value.double().numpy().ravel() for name, value in tensors.items()}
    return {
        "tensor_names": np.array(list(tensors)),
        "tensor_shapes": np.array([tuple(value.shape) for value in tensors.values()]),
        "tensor_means": np.array([value.mean() for value in flat.values()]),
        "tensor_stds": np.array([value.std() for value in flat.values()]),
        "tensor_values": np.array([v[positions(n, v.size)] for n, v in flat.items()], dtype=np.float32),
    }


def found(prefix: str, result: Found) -> dict[str, np.ndarray]:
    """Name the arrays of a detection result, in the source's own order, and the score threshold of all sources."""
    boxes, scores, labels = result
    return {
        f"{prefix}floor": np.array(0.05),
        f"{prefix}boxes": boxes.float().numpy(),
        f"{prefix}scores": scores.float().numpy(),
        f"{prefix}labels": labels.numpy().astype(np.int64),
    }


@torch.no_grad()
def main() -> None:
    """Run one source and write its two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=SOURCES, required=True)
    source = parser.parse_args().source
    peer = load(source)
    if source != "mmdetection_caffe":  # it has the keys and shapes of mmdetection
        write_keys(source, peer.module)
    batch = network_input(peer.size, peer.stem_gain)
    names = [f"{kind}.p{level}" for kind in ("features", "logits", "deltas") for level in range(3, 8)]
    tensors = dict(zip(names, [t for group in peer.network(batch) for t in group], strict=True))
    anchors = peer.anchors(batch)
    first_rows = np.cumsum([0, *(9 * tensors[f"logits.p{level}"][0, 0].numel() for level in range(3, 8))])
    hook = peer.first.register_forward_pre_hook(lambda module, inputs: tensors.update({"photo.input": inputs[0]}))
    seen = peer.photo(photo())
    hook.remove()
    extreme = extremes()
    arrays = {
        "stem_gain": np.array(peer.stem_gain),
        "input_size": np.array(peer.size),
        **sample(tensors),
        "anchors_first_cell": np.stack([anchors[i : i + 9].numpy() for i in first_rows[:-1]]),
        "anchors_last_cell": np.stack([anchors[i - 9 : i].numpy() for i in first_rows[1:]]),
        **found("", peer.detect(batch)),
        **found("photo_", seen),
        "extreme_boxes": peer.decode(*extreme).numpy(),
        "extreme_anchors": extreme[0].numpy(),
        "extreme_deltas": extreme[1].numpy(),
    }
    np.savez_compressed(HERE / f"{source}.npz", **arrays)
    over = sum(int((tensors[f"logits.p{level}"].sigmoid() > 0.05).sum()) for level in range(3, 8))
    print(source, "entries over 0.05:", over, "detections:", len(arrays["boxes"]), len(arrays["photo_boxes"]))
    for name, shape, mean, std in zip(
        names, arrays["tensor_shapes"], arrays["tensor_means"], arrays["tensor_stds"], strict=False
    ):
        print(f"{name:12} {shape} {mean:9.4f} {std:9.4f} {tensors[name].min():9.4f} {tensors[name].max():9.4f}")


if __name__ == "__main__":
    main()
