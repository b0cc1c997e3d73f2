from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from retinanet.anchors.lattice import AnchorLattice
from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import Collate, StepSampler, TrainingViews, evaluation_batches, resized, training_batches
from retinanet.data.transforms import Augment
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.losses.config import LossConfig
from retinanet.types import Sample, Target

RULE = Preprocess(short=32, long=64)
AUGMENT = Augment(
    hflip=0.5,
    vflip=0.5,
    turn=0.5,
    scale_jitter=(0.5, 1.0),
    zoom=(0.5, 2.0),
    mosaic=0.3,
    paste=0.3,
    photometric=0.5,
    closing=0,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven noisy images of different sizes; image i has i boxes."""
    folder, samples = tmp_path_factory.mktemp("images"), []
    for i in range(7):
        generator = torch.Generator().manual_seed(i)
        height, width = 40 + 3 * i, 50 + 2 * i
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        corners = torch.rand(i, 2, generator=generator) * 20
        target = Target(torch.cat([corners, corners + 10], 1).double(), torch.arange(i) % 2, torch.arange(i) == 2)
        samples.append(Sample(folder / f"{i}.png", i + 100, (height, width), target, torch.full((i,), 100.0)))
    return DetectionDataset(samples, ("ant", "bee"))


def with_a_broken_image(dataset, tmp_path, at):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    samples = list(dataset.samples)
    samples[at] = replace(samples[at], path=tmp_path / "broken.png")
    return DetectionDataset(samples, dataset.class_names)


def same(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.sizes, other.sizes)
        and [sample.image_id for sample in one.samples] == [sample.image_id for sample in other.samples]
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels) and torch.equal(a.ignore, b.ignore)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


@pytest.mark.parametrize(("length", "batch"), [(12, 4), (13, 4), (1, 1), (7, 7), (8, 3)])
def test_every_epoch_is_a_permutation(length, batch):
    sampler = StepSampler(length, batch, 0, 3 * -(-length // batch), seed=5)
    steps, per_epoch = list(sampler), sampler.steps_per_epoch
    assert len(steps) == len(sampler) == 3 * per_epoch and all(len(step) == batch for step in steps)
    orders = []
    for epoch in range(3):
        views = [view for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for view in step]
        assert {view[0] for view in views} == {epoch}
        order = [index for _, index in views]
        assert sorted(order[:length]) == list(range(length))
        assert order[length:] == order[: len(order) - length]  # the last step is filled up from the beginning
        orders.append(order)
    if length > 6:
        assert orders[0] != orders[1] != orders[2]
        assert next(iter(StepSampler(length, batch, 0, 1, seed=6))) != steps[0]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_later_start_gives_exactly_the_tail(parts):
    whole = list(StepSampler(13, 4, 0, 10, seed=1, parts=parts))
    for start in (1, 3, 4, 9, 10):
        tail = StepSampler(13, 4, start, 10, seed=1, parts=parts)
        assert list(tail) == whole[start * parts :] and len(tail) == (10 - start) * parts


def test_a_batch_larger_than_the_data():
    steps = list(StepSampler(3, 8, 0, 2))
    assert [{epoch for epoch, _ in step} for step in steps] == [{0}, {1}]
    for step in steps:
        assert sorted(Counter(index for _, index in step).values()) == [2, 3, 3]


@pytest.mark.parametrize(("parts", "world"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 4)])
def test_ranks_and_parts_share_a_step(parts, world):
    ranks = [list(StepSampler(50, 24, 2, 5, seed=3, parts=parts, rank=rank, world=world)) for rank in range(world)]
    for position, step in enumerate(range(2, 5)):
        pieces = [piece for rank in ranks for piece in rank[position * parts : (position + 1) * parts]]
        assert {len(piece) for piece in pieces} == {24 // parts // world}
        assert sorted(view for piece in pieces for view in piece) == sorted(
            StepSampler(50, 24, 2, 5, seed=3).step(step)
        )


def test_batches_that_cannot_be_shared():
    with pytest.raises(UserError, match=r"10 images cannot be shared evenly by 2 processes of 2 .*a multiple of 4"):
        StepSampler(50, 10, 0, 1, parts=2, world=2)
    with pytest.raises(UserError, match="a batch has at least one image, got 0"):
        StepSampler(50, 0, 0, 1)


def test_a_view_depends_on_seed_epoch_and_index_alone(dataset):
    views = TrainingViews(dataset, RULE, AUGMENT, seed=4, epochs=9)
    first = {(epoch, index): views[epoch, index] for epoch in range(2) for index in range(7)}
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for view in reversed(list(first)):
        again, before = TrainingViews(dataset, RULE, AUGMENT, seed=4, epochs=9)[view], first[view]
        assert torch.equal(again.image, before.image) and torch.equal(again.target.boxes, before.target.boxes)
    assert torch.equal(torch.get_rng_state(), state)

    def differing(other):
        return sum(first[0, i].image.shape != other[i].image.shape for i in range(7))

    assert differing([first[1, i] for i in range(7)]) >= 4
    assert differing([TrainingViews(dataset, RULE, AUGMENT, seed=5, epochs=9)[0, i] for i in range(7)]) >= 4


def test_views_seed_no_accelerator(dataset, monkeypatch):
    """Their generators are not forked, so they must not be touched either."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    _ = TrainingViews(dataset, RULE, AUGMENT, seed=4, epochs=9)[0, 1]
    assert not seeded


def test_boxes_follow_the_resize(dataset):
    sample = dataset[5]
    small = resized(sample, RULE)
    height, width = small.image.shape[1:]
    factor = torch.tensor([width / sample.size[1], height / sample.size[0]] * 2)
    torch.testing.assert_close(small.target.boxes, (sample.target.boxes * factor).float())  # float32 as the net
    assert (height, width) == RULE.size(*sample.size) and small.size == sample.size
    torch.testing.assert_close(
        RULE.boxes_back(small.target.boxes, (height, width), sample.size), sample.target.boxes.float()
    )


def test_scale_jitter_moves_both_limits(dataset):
    rule = Preprocess(short=32, long=36)  # both limits bind: the images are up to 1.25 times as long as short
    for jitter, expected in ((0.5, Preprocess(short=16, long=18)), (0.001, Preprocess(short=1, long=1))):
        views = TrainingViews(dataset, rule, Augment(hflip=0, scale_jitter=(jitter, jitter)), seed=0, epochs=9)
        sizes = [tuple(views[0, i].image.shape[1:]) for i in range(7)]
        assert sizes == [expected.size(*sample.size) for sample in dataset.samples]
        assert jitter < 0.5 or {min(size) for size in sizes} == {14, 15, 16}


def test_workers_and_restarts_change_nothing(dataset):
    def batches(start, workers):
        sampler = StepSampler(7, 4, start, 5, seed=2, parts=2)
        return list(training_batches(dataset, preprocess=RULE, augment=AUGMENT, sampler=sampler, workers=workers))

    alone = batches(0, 0)
    assert len(alone) == 10 and all(len(batch) == 2 for batch in alone)
    for other, expected in ((batches(0, 2), alone), (batches(3, 0), alone[6:])):
        assert len(other) == len(expected) and all(map(same, other, expected))
    for batch, views in zip(alone, StepSampler(7, 4, 0, 5, seed=2, parts=2), strict=True):
        assert [sample.image_id for sample in batch.samples] == [100 + index for _, index in views]
        assert all(sample.image is None for sample in batch.samples)


@pytest.mark.parametrize(
    "rule", [replace(RULE, multiple=8), replace(RULE, multiple=8, compat=PreprocessCompat(margin=3)), RULE]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_as_it_is_alone(dataset, rule, workers):
    def batches(indices):
        how = {"preprocess": rule, "batch_size": 3, "indices": indices, "workers": workers}
        return list(evaluation_batches(dataset, **how))

    everything = batches(range(7))
    assert sorted(index for indices, _ in everything for index in indices) == list(range(7))
    assert 1 < max(len(batch) for _, batch in everything) <= 3
    for indices, batch in everything:
        assert [sample.image_id for sample in batch.samples] == [100 + index for index in indices]
        for row, index in enumerate(indices):
            expected = resized(dataset[index], rule)
            pixels, size = rule.pad([expected.image])
            assert torch.equal(batch.images[row], pixels[0]) and torch.equal(batch.sizes[row], size[0])
            assert torch.equal(batch.targets[row].boxes, expected.target.boxes)
    assert sorted(index for indices, _ in batches([4, 0, 6, 1]) for index in indices) == [0, 1, 4, 6]
    assert batches([]) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clear_message(dataset, tmp_path, workers):
    broken = with_a_broken_image(dataset, tmp_path, 3)
    sampler = StepSampler(7, 7, 0, 1)
    for batches in (
        training_batches(broken, preprocess=RULE, augment=AUGMENT, sampler=sampler, workers=workers),
        evaluation_batches(broken, preprocess=RULE, batch_size=2, indices=range(7), workers=workers),
    ):
        with pytest.raises(UserError, match=r"broken\.png") as caught:
            list(batches)
        assert "Traceback" not in str(caught.value)


def test_what_was_loaded_before_a_broken_image_arrives(dataset, tmp_path):
    batches = evaluation_batches(
        with_a_broken_image(dataset, tmp_path, 5), preprocess=RULE, batch_size=2, indices=range(7)
    )
    assert len(next(batches)[1]) == len(next(batches)[1]) == 2
    with pytest.raises(UserError, match=r"broken\.png"):
        next(batches)


def test_batch_to_moves_the_images_only(dataset):
    batch = Collate(RULE)([resized(dataset[i], RULE) for i in (1, 2)])
    moved = batch.to(torch.device("meta"))
    assert moved.images.is_meta and moved.images.shape == batch.images.shape and len(moved) == 2
    assert moved.targets is batch.targets and moved.sizes is batch.sizes and not batch.images.is_meta
    assert all(target.boxes.device.type == "cpu" for target in moved.targets)


@pytest.mark.parametrize("workers", [0, 1])
def test_anchors_are_matched_where_the_batch_is_made(dataset, workers):
    """By whichever process; the batch is what it would be without, and its assignment what the loss would find."""
    criterion, lattice = LossConfig().build(), AnchorLattice()
    sampler = StepSampler(7, 2, 0, 2, seed=3)
    load = partial(training_batches, dataset, preprocess=RULE, augment=AUGMENT, sampler=sampler)
    assigned = load(workers=workers, assign=partial(criterion.assign_input, lattice))
    positives = 0
    for plain, batch in zip(load(), assigned, strict=True):
        assert plain.assignment is None and torch.equal(plain.images, batch.images)
        size = batch.images.shape[-2:]
        expected = criterion.assign(lattice, lattice.grids(*size), batch.targets)
        for name, value in vars(expected).items():
            found = getattr(batch.assignment, name)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
        positives += expected.num_positives
    assert positives > 0
