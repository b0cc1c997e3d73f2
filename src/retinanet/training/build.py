"""The parts of a run, put together on one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import Assign, StepSampler
from retinanet.data.windows import WindowDataset, count_drawn
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.losses.detection import DetectionLoss, Losses
from retinanet.model.retinanet import RetinaNet
from retinanet.training.config import TrainConfig
from retinanet.training.optim import average_weights, build_optimizer
from retinanet.training.precision import prepare_for_cpu
from retinanet.training.resume import describe_data
from retinanet.types import Assignment, Batch, RawOutput


@dataclass
class Training:
    """Everything that takes part in a run, put together on the device of this process.

    Attributes:
        config: the options.
        fabric: devices, precision and processes, launched.
        detector: what is trained; its ``net`` is the bare network, which is changed and moved in place.
        train_set: what is learned from.
        val_set: what is evaluated on.
        untrained: whether the heads start from their initialisation.
        net: the network with its loss, a :class:`LossModule` as fabric wraps it.
        optimizer: over the parameters of ``net``.
        criterion: the loss.
        average: moving average of the weights, or None.
        sampler: of the whole run, from step 0.
        data: what the data are, for the state: :func:`retinanet.training.resume.describe_data`.
    """

    config: TrainConfig
    fabric: Fabric
    detector: Detector
    train_set: DetectionDataset
    val_set: DetectionDataset
    untrained: bool = True
    net: Any = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    criterion: DetectionLoss = field(init=False)
    average: AveragedModel | None = field(init=False)
    sampler: StepSampler = field(init=False)
    data: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        config, fabric, net = self.config, self.fabric, self.detector.net
        net.to(fabric.device).to(memory_format=torch.channels_last)
        if fabric.device.type == "cpu":
            prepare_for_cpu(net)
        self.average = average_weights(net, config.optim.ema) if config.optim.ema else None
        optimizer = build_optimizer(net, config.optim, config.batch_size)
        self.net, self.optimizer = fabric.setup(LossModule(net), optimizer)
        self.net.train()
        always, turns = count_drawn(self.train_set)
        self.sampler = StepSampler(
            length=always + turns,
            batch_size=config.batch_size,
            start=0,
            stop=-(-(always + turns) // config.batch_size) * config.epochs,
            seed=config.seed,
            parts=config.parts,
            rank=fabric.global_rank,
            world=fabric.world_size,
            in_turns=len(self.train_set) - always,
            turns=turns,
        )
        self.criterion = config.loss.build()
        self.data = describe_data(self.train_set, self.val_set, Path(config.data))

    @property
    def best_net(self) -> RetinaNet:
        """The network that is evaluated and saved: the average where there is one."""
        return self.detector.net if self.average is None else cast(RetinaNet, self.average.module)

    @property
    def val_images(self) -> DetectionDataset:
        """The images that AP is measured on, whole."""
        return self.val_set.whole if isinstance(self.val_set, WindowDataset) else self.val_set

    @property
    def assign(self) -> Assign:
        """Matches the anchors over an input of a size (H, W) to targets."""
        return partial(self.criterion.assign_input, self.detector.net.lattice)

    def find_assignment(self, batch: Batch) -> Assignment:
        """What the anchors of a batch have to answer: as it brings it, or found here."""
        return batch.assignment or self.assign(batch.images.shape[-2:], batch.targets)

    def parts(self) -> dict[str, Any]:
        """What the training state consists of."""
        parts = {"net": self.detector.net, "optimizer": self.optimizer}
        return parts if self.average is None else {**parts, "average": self.average}


class LossModule(nn.Module):
    """The network and its loss as one module.

    Fabric's wrapper copies what a module returns to fp32. So it sees two scalars, and the raw outputs stay as they are.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, loss: Callable[[RawOutput], Losses]) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) -> classification and box loss.

        Raises:
            UserError: a batch norm that is trained sees one value per channel.
        """
        try:
            raw = self.net(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # torch's check of batch norms
                raise
            height, width = images.shape[2:]
            raise UserError(
                f"batch norms cannot be trained on {len(images)} image of {height} x {width} pixels at a time: the "
                "last ones see one value per channel. Use larger images, a larger batch in fewer parts "
                "(--optim.accumulate), or --architecture.norm frozen"
            ) from None
        losses = loss(raw)
        return losses.classification, losses.box
