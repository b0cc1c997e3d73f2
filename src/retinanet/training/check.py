"""``check``: is this data set sound, and do the anchors fit it? Before anything is trained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retinanet import __version__
from retinanet.analysis.anchors import report as anchor_report
from retinanet.analysis.anchors.audit import AnchorAudit, audit
from retinanet.analysis.anchors.propose import Proposal, propose
from retinanet.analysis.data import doctor
from retinanet.analysis.data.corrections import Correction, read_corrections
from retinanet.analysis.data.findings import DoctorReport, judge_data
from retinanet.analysis.data.fix import refuse_output, write_fixed_copy
from retinanet.analysis.data.pictures import picture_findings
from retinanet.anchors.lattice import AnchorLattice
from retinanet.data.dataset import training_datasets
from retinanet.data.faults import Fault
from retinanet.data.objects import Data, is_object, name_data
from retinanet.errors import UserError
from retinanet.files import check_new_file, check_output_folder
from retinanet.images.preprocess import Preprocess
from retinanet.options import explain_unknown_options
from retinanet.plain import with_changes
from retinanet.planning.plan import Plan, format_value
from retinanet.planning.planner import Origin
from retinanet.plotting.html import Verdict, write_report
from retinanet.training.config import ImageConfig
from retinanet.training.given import UNPLANNED
from retinanet.training.planned import plan
from retinanet.types import Sample

RESULTS = ("report.html", "check.json")


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        verdict: what to know first.
        doctor: the findings about the data.
        anchors: how the anchors fit, or None where the data cannot be read as training would.
        proposal: what to change, likewise.
        notes: what else was done or could not be done.
        output: the folder of the report.
    """

    verdict: Verdict
    doctor: DoctorReport
    anchors: AnchorAudit | None
    proposal: Proposal | None
    notes: tuple[str, ...]
    output: Path

    @property
    def stops(self) -> bool:
        """Whether something would stop training."""
        return self.doctor.stops

    def summary(self) -> str:
        """For the console."""
        parts = [self.verdict.summary(), self.doctor.summary()]
        if self.anchors is not None and self.proposal is not None:
            parts += [self.anchors.summary(), self.proposal.summary()]
        return "\n\n".join([*parts, *self.notes, f"report: {self.output / RESULTS[0]}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "doctor": self.doctor.to_dict(),
            "anchors": None if self.anchors is None else self.anchors.to_dict(),
            "proposal": None if self.proposal is None else self.proposal.to_dict(),
            "notes": list(self.notes),
        }


@explain_unknown_options
def check(
    data: Data,
    *,
    output: str = "check",
    model: str | None = None,
    architecture: dict[str, Any] | None = None,
    short: int | None = None,
    long: int | None = None,
    min_side: float = 4.0,
    pixels: bool = True,
    workers: int | None = None,
    fix: str | None = None,
    suspects: str | None = None,
    write: str | None = None,
    confine: bool = False,
    overwrite: bool = False,
) -> CheckResult:
    """Examine a data set and how the anchors fit it; write report.html and check.json.

    Args:
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python a data set object too, see ``train``.
        output: folder for the report.
        model: preset or model folder that is to be trained; its anchors and image size are judged. By default what
            ``train`` would choose, see ``plan``, and a step of it is timed.
        architecture: changes to it, such as anchors.
        short: pixels of the short side in training; by default the plan's, or the model folder's.
        long: most pixels of the long side in training, likewise.
        min_side: a box is too small if a side has fewer pixels than this after the resize.
        pixels: decode every image, to find damaged ones, wrong sizes and copies; without it only annotations are read.
        workers: threads that decode images; by default one per core, at most 8.
        fix: new folder for a fixed copy of the data, as COCO.
        suspects: file suspects.csv of ``retinanet suspects``; rows whose column accept says yes are corrected in the
            copy.
        write: file for the proposed anchors, which train takes as --config.
        confine: refuse a data set that names images outside of its folder.
        overwrite: replace the report of an earlier check in output.

    Raises:
        UserError: no such data or model, an unknown option, what ``confine`` refuses, or a report is there already.
    """
    folder = Path(output)
    check_output_folder(folder, RESULTS, overwrite=overwrite)
    _refuse_options(data, write=write, fix=fix, workers=workers, pixels=pixels, overwrite=overwrite)
    corrections = _read_suspects(suspects, fix)
    sides = {"short": short, "long": long}
    lattice, preprocess = _planned(model or str(UNPLANNED["model"]), architecture or {}, sides)
    made = None
    with suppress(UserError):  # which is found again below, and told
        timed, image = pixels and model is None, ImageConfig(**sides)
        made = plan(data, model=model, architecture=architecture, image=image, confine=confine, timed=timed)
        sides = {side: made.values[f"image.{side}"] for side in sides}
        lattice, preprocess = _planned(made.values["model"], architecture or {}, sides)
    report = doctor.examine(
        data, preprocess=preprocess, min_side=min_side, pixels=pixels, workers=workers, confine=confine
    )
    samples: list[Sample] = []
    anchors, proposal, notes = None, None, []
    try:
        larger = made is None or short is not None
        samples, anchors, proposal = _judge_anchors(data, lattice, preprocess, larger=larger)
    except UserError as error:
        notes.append(f"the anchors were not judged, because training would stop here: {error}")
        report = _add_problem(report, data, error)
    if write is not None:
        notes.append(_write(Path(write), proposal))
    refused = _write_fixed(str(data), fix, report, corrections, notes) if fix is not None else None
    name = name_data(data)
    verdict = judge_data(report, anchors, proposal, data=name, **_describe(made, name))
    result = CheckResult(verdict, report, anchors, proposal, tuple(notes), folder)
    sections = [doctor.section(report)]
    if anchors is not None:
        sections.append(anchor_report.section(anchors, proposal))
    judged, size = model or (made.values["model"] if made else ""), f"{preprocess.short} to {preprocess.long} pixels"
    about = {"data": name, "model": judged, "images": size, "version": __version__}
    pictures, title = picture_findings(report, data, samples, anchors), f"Check of {Path(name).name}"
    write_report(folder, RESULTS, title, sections, about, result.to_dict(), verdict, pictures)
    if refused is not None:
        raise UserError(f"{refused}\nAll findings are in {folder / RESULTS[0]}")
    return result


def _refuse_options(
    data: Data, *, write: str | None, fix: str | None, workers: int | None, pixels: bool, overwrite: bool
) -> None:
    check_new_file("--write", write, overwrite=overwrite)
    if workers is not None and workers < 1:
        raise UserError(f"--workers: expected at least 1 thread, got {workers}")
    if fix is not None and not pixels:
        raise UserError("--fix needs the images: it fixes what is wrong with their sizes. Leave out --pixels false")
    if fix is not None:
        if is_object(data):
            raise UserError(f"--fix copies files, and {name_data(data)} is an object. Correct the object itself")
        refuse_output(Path(str(data)), Path(fix))


def _judge_anchors(
    data: Data, lattice: AnchorLattice, preprocess: Preprocess, *, larger: bool
) -> tuple[list[Sample], AnchorAudit, Proposal]:
    """The images to train on, how the anchors fit, and what would fit better.

    ``larger``: propose larger images too; the plan has chosen their size already.
    """
    train_set, _ = training_datasets(data)
    samples, names = train_set.samples, train_set.class_names
    anchors = audit(samples, names, lattice=lattice, preprocess=preprocess)
    most = 4.0 if larger else 1.0
    return samples, anchors, propose(samples, names, lattice=lattice, preprocess=preprocess, most_pixels=most)


def _add_problem(report: DoctorReport, data: Data, error: UserError) -> DoctorReport:
    """The report with what would stop training, where it does not say so yet."""
    if isinstance(error, Fault) and error.kind == "nothing-to-learn":
        return replace(report, findings=(error, *report.findings))
    if report.stops:
        return report
    return replace(report, findings=(Fault("no-training", name_data(data), str(error)), *report.findings))


def _read_suspects(suspects: str | None, fix: str | None) -> list[Correction]:
    """The accepted rows; none where no file is named."""
    if suspects is None:
        return []
    if fix is None:
        raise UserError(f"--suspects {suspects} is for a fixed copy; name its folder: --fix NEW")
    corrections = read_corrections(Path(suspects))
    if not corrections:
        raise UserError(f"--suspects {suspects}: no row is accepted. Write yes in their column accept")
    return corrections


def _write_fixed(
    data: str, output: str, report: DoctorReport, corrections: Sequence[Correction], notes: list[str]
) -> UserError | None:
    """Write the fixed copy and note what became of it; returns why there is none, to be told after the findings."""
    try:
        copy = write_fixed_copy(data, output, report, corrections)
    except UserError as error:
        notes.append(str(error))
        return error
    counted = f"; annotations corrected: {len(corrections)}" if corrections else ""
    notes.append(f"a fixed copy is in {copy}{counted}; fixed.txt there says what was done")
    return None


def _describe(made: Plan | None, data: str) -> dict[str, Any]:
    """A plan for the verdict: its rows, a sentence, and the command."""
    if made is None:
        return {}
    rows = [(choice.option, format_value(choice.value), choice.reason) for choice in made.choices]
    values = made.values
    sentence = (
        f"{values['model']} on images of {values['image.short']} to {values['image.long']} pixels, {values['epochs']} "
        f"epochs{f'; {made.describe_costs()}' if made.seconds else ''}."
    )
    return {"plan": rows, "plan_sentence": sentence, "command": f"retinanet train {shlex.quote(data)} --output RUN"}


def _planned(
    model: str, changes: Mapping[str, Any], sides: Mapping[str, int | None]
) -> tuple[AnchorLattice, Preprocess]:
    """The anchors and the resize of the training to come."""
    origin, given = Origin.find(model), {key: value for key, value in sides.items() if value is not None}
    architecture = with_changes(origin.architecture, changes, "architecture")
    return architecture.anchors, with_changes(origin.preprocess or Preprocess(), given, "image")


def _write(path: Path, proposal: Proposal | None) -> str:
    """Write the proposal for ``train --config``; returns what to say."""
    if proposal is None or not proposal.changed:
        return f"{path} was not written: there is nothing to change"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(proposal.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write {path} cannot be written ({error}). Name another file") from None
    return f"the proposal is in {path}: retinanet train DATA --output RUN --config {path}"
