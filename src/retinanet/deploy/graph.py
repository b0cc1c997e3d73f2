"""The detector as one traceable module: padded pixels in, detections out, in tensors of fixed size.

This is the only code of the package that knows about tracing, so torch.export's own format is written here. It computes
what ``Preprocess.normalise``, the network and ``Postprocess`` compute, without any size that depends on the pixels.
"""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from retinanet.anchors.nms import BAND, count_voters, nms_keep, vote
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.errors import UserError
from retinanet.inference.exported import OUTPUTS, Card
from retinanet.inference.pt2 import COMPILED, KEY
from retinanet.model.fold import fold_batch_norms, pad_statically
from retinanet.types import RawOutput

STRIDE = 32  # of the deepest map of the backbone: the sides of an exported model's images are multiples of it
MOST = 100  # images of a batch; and 32 * 1024 pixels a side


class RawModule(nn.Module):
    """Pixels to what the heads say.

    Args:
        detector: its network is copied, and its batch norms folded.
        dtype: in which the network computes.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.rule = detector.spec.preprocess
        self.net = fold_batch_norms(detector.net)
        pad_statically(self.net)
        self.net.to(dtype)
        levels = range(detector.spec.architecture.anchors.num_levels)
        self.outputs = tuple(f"{kind}_{level}" for kind in ("logits", "deltas") for level in levels)
        mean, std = torch.tensor(self.rule.mean), torch.tensor(self.rule.std)
        self.input_dtype = torch.float32 if self.rule.compat.resampling == "normalised" else torch.uint8
        self.factor: Tensor
        self.shift: Tensor
        self.register_buffer("factor", (1 / (std * self.rule.compat.divisor))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """See :class:`DetectionModule`; L logits (N, A*K, H_l, W_l), then L deltas (N, A*4, H_l, W_l)."""
        raw = self.raw(images, sizes)
        return tuple(level.float() for level in (*raw.logits, *raw.deltas))

    def raw(self, images: Tensor, sizes: Tensor) -> RawOutput:
        """The network's output for what :class:`DetectionModule` takes."""
        dtype = next(self.net.parameters()).dtype
        raw: RawOutput = self.net(
            self._normalised(images, sizes).to(dtype).contiguous(memory_format=torch.channels_last)
        )
        return raw

    def _normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """``Preprocess.normalise``: (N, 3, H, W) uint8 -> float32, 0 where no image is."""
        if self.rule.compat.resampling == "normalised":
            return images
        pixels = (images.flip(1) if self.rule.compat.channels == "BGR" else images).float() * self.factor + self.shift
        height, width = sizes[:, 0, None], sizes[:, 1, None]  # (N, 1)
        rows = torch.arange(images.shape[2], device=images.device)[None] < height  # (N, H)
        columns = torch.arange(images.shape[3], device=images.device)[None] < width  # (N, W)
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], pixels, 0.0)


class DetectionModule(RawModule):
    """Pixels to detections.

    Args:
        detector: the model.
        dtype: in which the network computes; boxes and scores are float32.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(detector, dtype)
        self.outputs = OUTPUTS
        self.post = detector.spec.postprocess
        self.templates: Tensor
        self.register_buffer("templates", detector.spec.architecture.anchors.templates())

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Find objects.

        Args:
            images: (N, 3, H, W) uint8 RGB, zero where no image is; where the resize rule is ``normalised``, float32 as
                ``Preprocess.resize`` makes it.
            sizes: (N, 2) int64 height and width of the content.

        Returns:
            boxes (N, D, 4) xyxy in pixels of ``images``, scores (N, D), best first, labels (N, D) int64, and how many
            of the D = ``max_detections`` rows are detections, (N,) int64; the others are zero.
        """
        raw = self.raw(images, sizes)
        levels = [self._level(raw, level) for level in range(len(raw.logits))]
        scores, labels, boxes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))  # (N, n), (N, n, 4)
        limit = torch.stack([sizes[:, 1], sizes[:, 0]], dim=1).float()[:, None].repeat(1, 1, 2)  # (N, 1, 4)
        if self.post.compat.clip == "before":
            boxes = torch.minimum(boxes.clamp(min=0), limit)
            scores = torch.where(self._visible(boxes), scores, 0.0)
        elif self.post.compat.clip == "half":
            (rows, columns), stride = raw.grids[0], raw.lattice.strides[0]
            # as tensors: an exporter would write clamp's limit down as the number that it is in its example
            right = torch.minimum(boxes[..., 2], torch.full_like(boxes[..., 2], columns * stride))
            bottom = torch.minimum(boxes[..., 3], torch.full_like(boxes[..., 3], rows * stride))
            boxes = torch.cat([boxes[..., :2].clamp(min=0), right[..., None], bottom[..., None]], dim=2)
        candidates = scores, labels, boxes
        most = min(self.post.max_detections, scores.shape[1])
        keep = nms_keep(boxes, scores, labels, self.post.nms, self.post.class_agnostic, raw.num_classes, most)
        scores, labels, boxes = _best(torch.where(keep, scores, 0.0), labels, boxes, most)
        if self.post.compat.clip != "before":
            boxes = torch.minimum(boxes.clamp(min=0), limit)
            scores, labels, boxes = _best(torch.where(self._visible(boxes), scores, 0.0), labels, boxes, most)
        if self.post.vote:
            boxes = self._vote(labels, boxes, candidates, limit)
        filled = scores > 0
        return torch.where(filled[..., None], boxes, 0.0), scores, torch.where(filled, labels, 0), filled.sum(dim=1)

    def _vote(self, labels: Tensor, boxes: Tensor, candidates: tuple[Tensor, ...], limit: Tensor) -> Tensor:
        """The boxes (N, D, 4) of detections of these labels (N, D), as the best of the candidates see them."""
        scores, voters, shown = candidates
        shown = torch.minimum(shown.clamp(min=0), limit)
        scores = torch.where(self._visible(shown), scores, 0.0)
        scores, voters, shown = _best(
            scores, voters, shown, min(count_voters(self.post.max_detections), scores.shape[1])
        )
        bands = zip(boxes.split(BAND, dim=1), labels.split(BAND, dim=1), strict=True)  # for the sake of memory
        rule = shown, scores, voters, self.post.vote or 0.0
        return torch.cat([vote(some, theirs, *rule) for some, theirs in bands], dim=1)

    def _visible(self, boxes: Tensor) -> Tensor:
        """Which of the clipped boxes (N, n, 4) are shown, (N, n) bool."""
        shown = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        return torch.ones_like(shown) if self.post.compat.keep_empty else shown

    def _level(self, raw: RawOutput, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, topk), labels (N, topk) and boxes (N, topk, 4) of one level; no candidate has score 0."""
        classes, anchors = raw.num_classes, raw.lattice.num_anchors
        n, _, _, columns = raw.logits[level].shape
        # Channels last, as the runtimes have them in memory: an entry is (cell * A + a) * K + k.
        by_class = raw.logits[level].float().permute(0, 2, 3, 1).reshape(n, -1, classes)  # (N, H_l * W_l * A, K)
        # The best entries belong to the anchors whose best class is best: there are K times fewer of those to sort.
        value, anchor = _top(by_class.amax(dim=2), self.post.topk)  # (N, topk)
        label = torch.zeros_like(anchor)
        if classes > 1:
            every = by_class.gather(1, anchor[..., None].expand(-1, -1, classes))  # (N, topk, K)
            every = torch.where(value[..., None] > self.post.logit_threshold(), every, -torch.inf)
            value, order = every.flatten(1).topk(self.post.topk, dim=1)
            label = order % classes
            anchor = anchor.gather(1, order // classes)
        deltas = raw.deltas[level].float().permute(0, 2, 3, 1).reshape(n, -1, 4)  # (N, H_l * W_l * A, 4)
        deltas = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).reshape(-1, 4)
        a, cell = anchor % anchors, anchor // anchors
        row = cell // columns
        down, across = raw.lattice.steps[level]
        x = ((cell - row * columns).float() + raw.lattice.offset) * across
        y = (row.float() + raw.lattice.offset) * down
        box = torch.stack([x, y, x, y], dim=2) + self.templates[level][a]
        boxes = raw.coder.decode(deltas, box.reshape(-1, 4)).reshape(n, -1, 4)
        return torch.where(value > self.post.logit_threshold(), value.sigmoid(), 0.0), label, boxes


def make_module(detector: Detector, *, raw: bool, dtype: torch.dtype = torch.float32) -> RawModule:
    """The module to trace: to detections, or to the heads where ``raw``."""
    return (RawModule if raw else DetectionModule)(detector, dtype)


def trace(module: RawModule) -> ExportedProgram:
    """The module as a program for any number of images, of any size that :class:`Preprocess` pads to.

    Raises:
        UserError: images are not padded to a multiple of 32.
    """
    multiple = module.rule.multiple
    if multiple % STRIDE:
        raise UserError(
            f"an exported model takes images whose sides are multiples of {STRIDE}; this one pads to multiples of "
            f"{multiple}. Set preprocess.multiple to {STRIDE} in its config.json"
        )
    height, width = (-(-side // multiple) * multiple for side in (192, 256))
    images = torch.zeros(2, 3, height, width, dtype=module.input_dtype)
    sizes = torch.tensor([[height, width - 6], [height - 2, width]])
    count = Dim("n", min=1, max=MOST)
    sides = {2: multiple * Dim("h", min=1, max=1024), 3: multiple * Dim("w", min=1, max=1024)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        return torch.export.export(module.eval(), (images, sizes), dynamic_shapes=({0: count, **sides}, {0: count}))


def write_pt2(detector: Detector, card: Card, path: Path, *, compile: bool) -> None:
    """Write a torch.export program; with ``compile`` also machine code for this kind of CPU, beside it.

    Raises:
        UserError: there is no C++ compiler.
    """
    if compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(
            "--compile needs a C++ compiler (g++ or clang++), and none was found. Install one, or leave out --compile"
        )
    module = make_module(detector, raw=card.raw, dtype=torch.bfloat16 if card.precision == "bf16" else torch.float32)
    program = trace(module.to(memory_format=torch.channels_last))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about weights that share memory
        buffer = io.BytesIO()  # given a path, torch's writer ends the process where the disk is full
        inputs, program.example_inputs = program.example_inputs, None  # torch would pickle them
        torch.export.save(program, buffer, extra_files={KEY: card.to_json()})
        path.write_bytes(buffer.getbuffer())
        seal(path)
        if compile:
            program.example_inputs = inputs
            compiled, metadata = path.with_name(path.stem + COMPILED), {"aot_inductor.metadata": {KEY: card.to_json()}}
            torch._inductor.aoti_compile_and_package(program, package_path=str(compiled), inductor_configs=metadata)
            seal(compiled)


def _top(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest of (N, n) and where they are, (N, most); -inf where n is smaller."""
    padded = functional.pad(values, (0, most), value=-torch.inf)
    best, place = padded.topk(most, dim=1)
    return best, torch.where(best > -torch.inf, place, 0)


def _best(scores: Tensor, labels: Tensor, boxes: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows with the highest scores, in that order."""
    best, place = scores.topk(most, dim=1)
    return best, labels.gather(1, place), boxes.gather(1, place[..., None].expand(-1, -1, 4))
