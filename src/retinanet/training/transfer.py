"""Weights of one model for another: what fits is taken over, and nothing is dropped without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from retinanet.model.retinanet import RetinaNet

ABSENT = "the old model has none"
RESHAPED = "the shape differs"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """Which tensors a network has from an older model. Each of its tensors is either kept or fresh.

    Attributes:
        kept: taken over, bit for bit.
        fresh: initialised anew -> why.
        resized: those of ``fresh`` that the old model has in another shape -> the old and the new shape.
        unused: tensors of the old model that have no place in the new one.
    """

    kept: tuple[str, ...]
    fresh: Mapping[str, str]
    resized: Mapping[str, tuple[Shape, Shape]]
    unused: tuple[str, ...]

    def summary(self) -> str:
        """For a person: a line for what is kept, for each reason to start anew, and for what is left out."""
        count = f"all {len(self.kept)}" if not self.fresh else f"{len(self.kept)} of {len(self.kept) + len(self.fresh)}"
        lines = [f"kept {count} tensors"]
        for reason in dict.fromkeys(self.fresh.values()):
            names = [name for name in self.fresh if self.fresh[name] == reason]
            lines.append(f"new: {self._grouped(names)}, because {reason}")
        if self.unused:
            lines.append(f"left out, because the new model has no such part: {self._grouped(self.unused)}")
        return "\n".join(lines)

    def report(self) -> str:
        """Every tensor on a line of its own: ``kept``, ``changed`` (new, in another shape), ``new`` or ``left out``."""
        lines = [f"kept      {name}" for name in self.kept]
        for name, reason in self.fresh.items():
            if name in self.resized:
                old, new = self.resized[name]
                lines.append(f"changed   {name}: shape {old} became {new}: {reason}")
            else:
                lines.append(f"new       {name}: {reason}")
        return "\n".join([*lines, *(f"left out  {name}" for name in self.unused)])

    def _grouped(self, names: Iterable[str]) -> str:
        """Names by the part of the network; a part with more than two is told by their number."""
        groups: dict[str, list[str]] = {}
        for name in names:
            parts = name.split(".")
            groups.setdefault(parts[0] if parts[0] == "backbone" else ".".join(parts[:3]), []).append(name)
        told: list[str] = []
        for group, members in groups.items():
            stems, leaves = ([*dict.fromkeys(name.rpartition(".")[side] for name in members)] for side in (0, 2))
            if len(members) > 2:
                told.append(f"{group}.* ({len(members)} tensors: {', '.join(leaves)})")
            elif len(stems) == 1:
                told.append(" and .".join([members[0] + self._growth(members[0]), *leaves[1:]]))
            else:
                told += [name + self._growth(name) for name in members]
        return ", ".join(told)

    def _growth(self, name: str) -> str:
        if name not in self.resized:
            return ""
        old, new = self.resized[name]
        return f" ({old[0]} -> {new[0]} rows)" if old[1:] == new[1:] else f" ({old} -> {new})"


def transfer(old: Mapping[str, Tensor], net: RetinaNet, *, fresh: Mapping[str, str] | None = None) -> Transfer:
    """Copy into a network what an older model has under the same name and in the same shape.

    Args:
        old: tensors of the older model, by their names in ``net``: see :func:`named_as`.
        net: changed in place; what is not taken over stays as it was initialised.
        fresh: prefix of names, such as ``heads.cls.output.`` -> why no tensor under it is taken over.

    Returns:
        What became of each tensor of both.
    """
    fresh = fresh or {}
    wanted = net.state_dict()
    reasons: dict[str, str] = {}
    for name, value in wanted.items():
        told = next((reason for prefix, reason in fresh.items() if name.startswith(prefix)), None)
        if told is not None:
            reasons[name] = told
        elif name not in old:
            reasons[name] = ABSENT
        elif old[name].shape != value.shape:
            reasons[name] = RESHAPED
    kept = tuple(name for name in wanted if name not in reasons)
    net.load_state_dict({name: old[name] for name in kept}, strict=False)
    resized = {
        name: (tuple(old[name].shape), tuple(wanted[name].shape))
        for name in reasons
        if name in old and old[name].shape != wanted[name].shape
    }
    return Transfer(kept, reasons, resized, tuple(name for name in old if name not in wanted))


def named_as(old: RetinaNet, net: RetinaNet) -> dict[str, Tensor]:
    """The tensors of a network under the names that another one with the same backbone has for them.

    They differ only where group norms stand in for batch norms that timm fuses with their activation: what is ``bn1``
    in one is ``bn1.0`` in the other. The norms of a backbone come in the same order in both.
    """
    norms = dict(zip(_norms(old), _norms(net), strict=True))
    wanted = net.state_dict()
    named = {}
    for name, value in old.state_dict().items():
        module, _, leaf = name.rpartition(".")
        other = f"{norms.get(module, module)}.{leaf}"
        named[other if other in wanted else name] = value
    return named


def _norms(net: RetinaNet) -> list[str]:
    modules = net.backbone.named_modules(prefix="backbone")
    return [name for name, module in modules if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
