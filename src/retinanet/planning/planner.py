"""From the facts about the data and the machine to a plan: the order in which the rules are asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinanet.analysis.anchors.propose import propose
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling
from retinanet.interop.pretrained import model_folder
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import PRESETS, Architecture, preset
from retinanet.model_folder import read_spec
from retinanet.plain import with_changes
from retinanet.planning import rules
from retinanet.planning.fingerprint import Fingerprint
from retinanet.planning.machine import GB, Host
from retinanet.planning.memory import MemoryNeed, predict_memory
from retinanet.planning.plan import Choice, Plan
from retinanet.planning.rules import Size
from retinanet.planning.speed import EVALUATED, Speed
from retinanet.plotting.html import format_time
from retinanet.types import Sample

START_SECONDS = 15.0  # to load everything and read every image once, of small data
CROWDED = 0.02  # share of overlapping boxes that is worth a note
PAPER_SIZE = (800, 1333)


@dataclass(frozen=True)
class Origin:
    """What a training starts from: a preset, or a model that has its own anchors and size of images.

    Attributes:
        architecture: of the network.
        preprocess: of a saved model; None for a preset.
        postprocess: of a saved model, whose limits are not lowered.
        tiling: of a saved model that was trained on windows.
        class_names: that a saved model knows.
        folder: of a saved model; None for a preset.
    """

    architecture: Architecture
    preprocess: Preprocess | None = None
    postprocess: Postprocess = Postprocess()
    tiling: Tiling | None = None
    class_names: tuple[str, ...] = ()
    folder: Path | None = None

    @classmethod
    def find(cls, model: str) -> Origin:
        """What the name of a preset or of a model stands for.

        Raises:
            UserError: neither a preset nor a model, or a folder without one.
        """
        folder = model_folder(model)
        if folder is None:
            if model not in PRESETS and Path(model).exists():
                read_spec(model)  # which says what is wrong with it
            return cls(preset(model))
        spec = read_spec(folder)
        return cls(spec.architecture, spec.preprocess, spec.postprocess, spec.tiling, spec.class_names, folder)


@dataclass(frozen=True)
class Planner:
    """All that a plan is made from.

    Attributes:
        name: of the data.
        samples: to train on.
        class_names: K names.
        facts: about them.
        host: the machine.
        given: the user's options by dotted name.
        recipe: of the training; another than the default decides network, size and schedule itself.
        budget: seconds, or None.
        find_origin: what a model's name stands for.
        time: times a step of an architecture at a size (height, width), or None where none can be timed.
        tiling: the windows that are trained on, of which ``samples`` and ``facts`` are; None for whole images.
        why_tiling: and why.
        choices: what is decided so far.
    """

    name: str
    samples: Sequence[Sample]
    class_names: Sequence[str]
    facts: Fingerprint
    host: Host
    given: Mapping[str, Any]
    recipe: str
    budget: float | None
    find_origin: Callable[[str], Origin]
    time: Callable[[Architecture, tuple[int, int]], Speed] | None
    tiling: Tiling | None = None
    why_tiling: str = ""
    choices: dict[str, Choice] = field(default_factory=dict)

    def decide(self, option: str, value: Any, reason: str) -> Any:
        """Decide an option; returns its value, which is the user's where one was given."""
        if option in self.given:
            yours = self.given[option]
            text = f"yours; by the rules {value}: {reason}" if yours != value else f"yours, and the rule's; {reason}"
            value, reason = yours, text
        self.choices[option] = Choice(option, value, reason, given=option in self.given)
        return value

    @property
    def planned(self) -> bool:
        """Whether the rules decide, not a recipe of somebody else."""
        return self.recipe == "default"

    def make(self) -> Plan:
        """Ask the rules one after the other.

        Raises:
            UserError: nothing fits into the budget or the memory, or a given value is impossible.
        """
        facts, origin = self.facts, self._choose_network()
        if self.tiling is not None:
            self.decide("image.tile", self.tiling.tile, self.why_tiling)
            self.decide("image.overlap", self.tiling.overlap, "more than nearly all objects have")
        batch, why = rules.choose_batch(facts, self.host.device) if self.planned else (16, "the recipe's")
        batch, speed = int(self.decide("batch_size", batch, why)), None
        if self.time is not None:
            speed = self.time(origin.architecture, self._list_sizes(origin)[-1].input(facts))
        size, memory = self._choose_size(origin, batch, speed)
        epochs = self.choices["epochs"].value
        self._choose_anchors(origin, size)
        for name, (value, why) in zip(("max_detections", "topk"), rules.choose_limits(facts), strict=True):
            known = getattr(origin.postprocess, name)
            self.decide(f"postprocess.{name}", max(value, known), why if value >= known else "the model's")
        interval = self.decide("run.evaluate_every", *rules.choose_interval(epochs))
        self.decide("run.workers", *rules.choose_workers(self.host))
        if self.planned and "augment" not in self.given:
            self.decide("augment.hflip", *rules.choose_flip(self.class_names))
        seconds = self._time_epoch(speed, size, interval) if speed else None
        return Plan(
            self.name,
            facts,
            self.host,
            tuple(self.choices.values()),
            memory,
            None if seconds is None else START_SECONDS + epochs * seconds,
            seconds,
            tuple(self._list_notes(seconds, epochs)),
        )

    def _choose_network(self) -> Origin:
        model, why = rules.choose_model(self.host) if self.planned else ("resnet50", "the recipe's")
        name = self.decide("model", model, why)
        origin = self.find_origin(name)
        if self.planned and origin.preprocess is None and (depth := rules.choose_depth(name)):
            self.decide("architecture.depth", *depth)
        group = "architecture."
        parts = {key.removeprefix(group): value for key, value in self.given.items() if key.startswith(group)}
        if "architecture.depth" in self.choices:
            parts = {"depth": self.choices["architecture.depth"].value, **parts}
        return replace(origin, architecture=with_changes(origin.architecture, parts, "architecture"))

    def _list_sizes(self, origin: Origin) -> list[Size]:
        """The sizes to choose from, the wanted one first."""
        facts, known = self.facts, origin.preprocess
        given = (self.given.get("image.short"), self.given.get("image.long"))
        if self.tiling is not None:
            scale = rules.find_window_scale(facts)
            side = given[0] or (known.short if known else rules.to_step(self.tiling.tile * scale))
            return [Size(side, side, facts.small * side / self.tiling.tile)]
        if known is None and self.planned and given == (None, None):
            return rules.list_sizes(facts, self.host.device)
        short, long = rules.complete_size(given, (known.short, known.long) if known else PAPER_SIZE)
        scale = min(short / max(1, facts.short.median), long / max(1, facts.long.median))
        return [Size(short, long, facts.small * scale)]

    def _choose_size(self, origin: Origin, batch: int, speed: Speed | None) -> tuple[Size, MemoryNeed]:
        """The largest size that leaves time for enough epochs and fits into the memory, with the epochs."""
        sizes = self._list_sizes(origin)
        full, why = rules.full_epochs(self.facts) if self.planned else (rules.EPOCHS, "the recipe's")
        possible: list[tuple[Size, int, MemoryNeed]] = []
        for size in sizes:
            row = (size, *self._share_batch(origin, size, batch))
            if row[2].peak <= rules.FILL * self.host.room:
                possible.append(row)
                if self.budget is None:  # then nobody asks for a smaller one, and each takes a second to look at
                    break
        if not possible:
            raise self._refuse_memory(row)
        chosen, epochs = possible[0], full
        if self.budget is not None:
            if speed is None:
                raise UserError("budget: a step can be timed on this machine only, so a plan for another one has none")
            chosen, epochs, why = self._spend(possible, full, speed)
        size, parts, memory = chosen
        reason = rules.explain_size(size, self.facts, self.host.device) if self.planned else "the recipe's"
        if origin.preprocess is not None:
            reason = "as the model that it starts from was trained"
        elif size is not possible[0][0]:
            reason += f"; {possible[0][0].short} would leave too few epochs in the budget"
        elif size is not sizes[0]:
            reason += f"; {sizes[0].short} does not fit into the memory"
        self.decide("image.short", size.short, reason)
        self.decide("image.long", size.long, "in the shape of the images" if self.tiling is None else "of a window")
        self.decide("epochs", epochs, why)
        need = f"{memory.peak / GB:.1f} GB of {self.host.room / GB:.1f} at once"
        self.decide("optim.accumulate", parts, need if parts == 1 else f"the batch in {parts} parts takes {need}")
        return size, memory

    def _share_batch(self, origin: Origin, size: Size, batch: int) -> tuple[int, MemoryNeed]:
        """In how few parts a batch fits, or in as many as it has images, with the memory of a part."""
        given = self.given.get("optim.accumulate")
        options = [given] if given else [parts for parts in range(1, batch + 1) if batch % parts == 0]
        for parts in options:
            memory = predict_memory(
                origin.architecture,
                max(1, len(self.class_names)),
                size.input(self.facts),
                max(1, batch // parts),
                optimizer=self.given.get("optim.optimizer", "adamw" if self.planned else "sgd"),
                average=self.planned,
                bf16=self.host.bf16,
                accelerator=self.host.device_memory is not None,
            )
            if memory.peak <= rules.FILL * self.host.room:
                break
        return parts, memory

    def _spend(
        self, possible: Sequence[tuple[Size, int, MemoryNeed]], full: int, speed: Speed
    ) -> tuple[tuple[Size, int, MemoryNeed], int, str]:
        """The largest size at which the budget allows enough epochs, and how many those are."""
        assert self.budget is not None
        seconds = self.budget * rules.SPARE - START_SECONDS
        if "epochs" in self.given:
            affordable = [row for row in possible if self._time_epoch(speed, row[0]) * self.given["epochs"] <= seconds]
            return (affordable or possible[-1:])[0], full, "without the budget"
        counts = [int(seconds / self._time_epoch(speed, size)) for size, _, _ in possible]
        good, least = rules.good_epochs(self.facts), rules.least_epochs(self.facts)
        best = next((index for index, count in enumerate(counts) if count >= good), len(counts) - 1)
        if counts[best] < least:
            needed = (self._time_epoch(speed, possible[-1][0]) * least + START_SECONDS) / rules.SPARE
            raise UserError(
                f"budget: {format_time(self.budget)} are too few for anything; the least that trains is {least} epochs "
                f"of images of {possible[-1][0].short} pixels, about {format_time(needed)}: --budget "
                f"{math.ceil(needed / 60)}m{self.host.others}"
            )
        epochs = min(counts[best], max(full, rules.MOST_EPOCHS if best == 0 else full))
        return possible[best], epochs, f"what {format_time(self.budget)} allow at this size"

    def _time_epoch(self, speed: Speed, size: Size, interval: int = 1) -> float:
        """Seconds of an epoch with its share of evaluation."""
        views = self.facts.images + EVALUATED * self.facts.val_images / interval
        return views * speed.of_view(size.pixels(self.facts))

    def _refuse_memory(self, tried: tuple[Size, int, MemoryNeed]) -> UserError:
        size, parts, memory = tried
        room = self.host.room
        text = (
            f"a step on images of {size.short} to {size.long} pixels takes about {memory.peak / GB:.1f} GB, even in "
            f"{parts} part{'s' if parts > 1 else ''}, and there are {room / GB:.1f} GB"
        )
        share = (rules.FILL * room - memory.weights - memory.process) / max(1.0, memory.activations + memory.passing)
        if share <= 0:
            return UserError(f"{text}. Take a smaller model (--model lite), or free some memory")
        fits = int(size.short * math.sqrt(share) / rules.STEP) * rules.STEP
        return UserError(f"{text}. Images of {fits} pixels would fit: --image.short {fits} --image.long {2 * fits}")

    def _choose_anchors(self, origin: Origin, size: Size) -> None:
        if not self.planned or origin.preprocess is not None or not self.facts.boxes:
            return
        option = "architecture.anchors"
        if option in self.given:
            self.choices[option] = Choice(option, self.given[option], "yours", given=True)
            return
        rule = Preprocess(short=size.short, long=size.long)
        lattice = origin.architecture.anchors
        proposal = propose(self.samples, self.class_names, lattice=lattice, preprocess=rule, most_pixels=1.0)
        if proposal.architecture_anchors:
            self.decide(option, proposal.architecture_anchors, proposal.reason)

    def _list_notes(self, seconds: float | None, epochs: int) -> list[str]:
        notes, facts = [], self.facts
        if self.tiling is not None:
            notes.append(f"images, boxes and objects above are those of windows of {self.tiling.tile} pixels")
        if facts.copies:
            notes.append(f"{facts.copies} validation images are copies of training images")
        if facts.crowding >= CROWDED:
            notes.append(
                f"{facts.crowding:.1%} of the boxes overlap another of their class by an IoU of 0.5 or more, of which "
                "NMS leaves one: --postprocess.nms 0.6 keeps more of them"
            )
        if self.budget and seconds and epochs * seconds + START_SECONDS > self.budget:
            whole = format_time(epochs * seconds + START_SECONDS)
            notes.append(f"with your values it takes about {whole}, more than the budget of {format_time(self.budget)}")
        return notes
