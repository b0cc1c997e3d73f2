"""The backbone: any timm network that yields features at strides 8, 16 and 32."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from retinanet.errors import UserError

Norm = Literal["frozen", "batch", "group"]
STRIDES = (8, 16, 32)
log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A timm backbone -> C3, C4, C5.

    Args:
        name: a timm model that supports ``features_only``.
        weights: ``"imagenet"`` (timm downloads them), the path of a safetensors file with timm's parameter names, or
            ``"none"``.
        norm: ``"frozen"`` holds the statistics and the affine of every batch norm, ``"batch"`` trains both,
            ``"group"`` puts group norms in their place.
        frozen_stages: how many of timm's stages are not trained. Of a ResNet, 1 is the stem, 2 the stem and the stage
            of stride 4 (what the paper's code freezes), and so on.
        stride_in_1x1: the first block of a stage strides in its first convolution, 1x1, instead of the 3x3 one: what
            ResNets of Caffe and Detectron do. Such weights fit, but work, in no other backbone.
        norm_eps: epsilon of the batch norms, where it is not the backbone's own.

    Attributes:
        channels: of C3, C4, C5.
        mean: RGB mean of the pixels, in [0, 1], that the backbone's weights were trained with.
        std: the standard deviation, likewise.

    Raises:
        UserError: unknown name, weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str = "none",
        norm: Norm = "frozen",
        frozen_stages: int = 0,
        stride_in_1x1: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("frozen", "batch", "group"):
            raise UserError(f"norm is frozen, batch or group, got {norm!r}")
        if norm_eps is not None and not 0 <= norm_eps < 1:
            raise UserError(f"norm_eps is a number of at least 0 and below 1, or null, got {norm_eps}")
        self.norm = norm
        self.body = _create(name, pretrained=weights == "imagenet")
        if weights not in ("none", "imagenet"):
            load_backbone_weights(self.body, Path(weights))
        if stride_in_1x1:
            _stride_in_1x1(self.body, name)
        if norm_eps is not None:
            for module in _batch_norms(self.body):
                module.eps = norm_eps
        if norm == "group":
            _replace_batch_norms(self.body)
        info: Any = self.body.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        config = getattr(self.body, "pretrained_cfg", None) or {}
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))
        if norm == "frozen":
            for module in _batch_norms(self.body):
                module.requires_grad_(False)
        for parameter in _stage_parameters(self.body, name, frozen_stages):
            parameter.requires_grad_(False)
        self.train()  # modules are born in training mode, and frozen norms must not be

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images -> C3, C4, C5, each (N, C_l, ceil(H / stride), ceil(W / stride))."""
        features: list[Tensor] = self.body(images)
        return features

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but frozen batch norms keep their statistics."""
        super().train(mode)
        for module in _batch_norms(self.body):
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self


def load_backbone_weights(body: nn.Module, path: Path) -> None:
    """Load a safetensors file with timm's names into a backbone; tensors past the backbone (a classifier) are left out.

    Raises:
        UserError: the file is missing or damaged, or lacks a tensor of the backbone, or has one of another shape.
    """
    if not path.is_file():
        raise UserError(
            f"backbone weights: no file {path}. Expected 'imagenet', 'none' or the path of a safetensors file"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"backbone weights: {path} is not a readable safetensors file ({error})") from None
    wanted = {key: value for key, value in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    # Backbones that timm flattens call stages.0 stages_0.
    names = {key.replace(".", "_"): key for key in wanted}
    found = {names[flat]: value for key, value in tensors.items() if (flat := key.replace(".", "_")) in names}
    if wrong := list_misfits(found, wanted):
        raise UserError(
            f"backbone weights: {path} does not fit this backbone, {len(wrong)} of {len(wanted)} tensors are wrong: "
            + "; ".join(wrong[:5])
        )
    body.load_state_dict(found, strict=False)
    log.info("backbone weights: %d tensors from %s, %d in the file unused", len(found), path, len(tensors) - len(found))


def list_misfits(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], called: Mapping[str, str] | None = None
) -> list[str]:
    """What keeps tensors from being loaded, a line for each that is missing, extra or of another shape.

    Args:
        tensors: by name.
        wanted: those of the network.
        called: name -> what the tensor is called in the file that it came from, where that is something else.
    """
    names = called or {}
    wrong = [f"{key}: missing" for key in wanted if key not in tensors]
    wrong += [f"{names.get(key, key)}: no place in the network" for key in tensors if key not in wanted]
    return wrong + [
        f"{names.get(key, key)}: shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]


def _create(name: str, *, pretrained: bool) -> nn.Module:
    """The timm backbone with exactly the three features at strides 8, 16 and 32."""
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise UserError(f"unknown backbone {name!r}{hint} Any timm model with features_only can be used")
    try:
        draft = _draft(name)
        reductions = draft.feature_info.reduction()
        indices = [reductions.index(stride) for stride in STRIDES]
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"backbone {name} does not yield features at strides 8, 16 and 32 ({error})") from None
    if getattr(draft, "output_fmt", "NCHW") != "NCHW":
        raise UserError(f"backbone {name} yields {draft.output_fmt.value} features; choose one whose features are NCHW")
    try:
        with silence_hub():
            return timm.create_model(name, features_only=True, out_indices=indices, pretrained=pretrained)
    except Exception as error:
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({type(error).__name__}: {error}). Without "
            "a network, pass --weights FILE.safetensors (timm's parameter names), or --weights none for random weights"
        ) from None


@contextmanager
def silence_hub() -> Iterator[None]:
    """Without the messages of huggingface_hub, which tells every retry: one of ours says all."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)


@cache
def _draft(name: str) -> Any:
    """The backbone with all its features and without memory, to read its description from; half the time of a build."""
    with torch.device("meta"):
        return timm.create_model(name, features_only=True)


def _stride_in_1x1(body: nn.Module, name: str) -> None:
    """Move the stride of every bottleneck from its 3x3 convolution to the 1x1 one before it."""
    blocks = [module for module in body.modules() if isinstance(module, Bottleneck)]
    if not blocks:
        raise UserError(f"stride_in_1x1 is for ResNets of bottlenecks (resnet50 and deeper), not for {name}")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _batch_norms(body: nn.Module) -> list[_BatchNorm]:
    return [module for module in body.modules() if isinstance(module, _BatchNorm)]


def _replace_batch_norms(body: nn.Module) -> None:
    """Group norm of 32 groups, or the most that divide the channels; the affine and timm's fused activation stay."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                norm = nn.GroupNorm(math.gcd(32, child.num_features), child.num_features, eps=child.eps)
                norm.load_state_dict({"weight": child.weight.detach(), "bias": child.bias.detach()})
                activation = getattr(child, "act", None)
                setattr(parent, name, norm if activation is None else nn.Sequential(norm, activation))


def _stage_parameters(body: nn.Module, name: str, frozen_stages: int) -> list[nn.Parameter]:
    """The parameters of the first stages, in the order in which data passes them."""
    if frozen_stages == 0:
        return []
    stages = [module.replace(".", "_") + "_" for module in _draft(name).feature_info.module_name()]
    if not 0 <= frozen_stages <= len(stages):
        raise UserError(f"frozen_stages is 0 to {len(stages)} for {name}, got {frozen_stages}")
    modules = [(path.replace(".", "_") + "_", module) for path, module in body.named_modules()]
    inside = [i for i, (path, _) in enumerate(modules) if path.startswith(stages[frozen_stages - 1])]
    if not inside:
        raise UserError(f"the stages of {name} cannot be told apart: use frozen_stages 0")
    return [parameter for _, module in modules[: inside[-1] + 1] for parameter in module.parameters(recurse=False)]
