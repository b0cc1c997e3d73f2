from fractions import Fraction

import numpy
import pytest
import torch
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from retinanet.errors import UserError
from retinanet.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, PreprocessCompat, batches_of_one_size


def image(height, width, seed=0):
    """Smooth enough to look like a photograph, with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator) * 255
    smooth = functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (smooth + torch.randn(3, height, width, generator=generator) * 20).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((375, 500), (800, 1067)),
        ((426, 640), (800, 1202)),
        ((640, 360), (1333, 750)),
        ((612, 612), (800, 800)),
        ((578, 640), (800, 886)),
        ((640, 480), (1067, 800)),
        ((800, 1333), (800, 1333)),
        ((1, 1), (800, 800)),
        ((1, 777), (2, 1333)),
        ((1, 5000), (1, 1333)),
        ((5000, 1), (1333, 1)),
    ],
)
def test_size_rounds_as_detectron(size, expected):
    assert Preprocess().size(*size) == expected


def test_size_is_the_nearest_whole_number():
    """Against exact fractions: the short side is exact, or the long side is, where that is the limit."""
    rule = Preprocess()
    for height in range(200, 1300, 7):
        for width in range(200, 3000, 131):
            scale = min(Fraction(800, min(height, width)), Fraction(1333, max(height, width)))
            got = rule.size(height, width)
            assert all(
                abs(side * scale - out) <= Fraction(1, 2) for side, out in zip((height, width), got, strict=True)
            )
            assert min(got) == 800 or max(got) == 1333


@pytest.mark.parametrize("size", [(40, 61), (97, 33), (16, 20), (1, 1), (1, 9), (3, 200), (150, 150)])
def test_resize_is_antialiased_bilinear(size):
    rule = Preprocess(short=32, long=64)
    pixels = image(*size)
    got = rule.resize(pixels)
    assert got.dtype == torch.uint8 and tuple(got.shape) == (3, *rule.size(*size))
    expected = functional.interpolate(pixels[None].float(), size=got.shape[1:], mode="bilinear", antialias=True)[0]
    assert (got.float() - expected).abs().max() <= 1


def test_resize_does_not_depend_on_the_memory_layout():
    rule, pixels = Preprocess(short=32, long=64), image(50, 70)
    turned = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous() and torch.equal(rule.resize(pixels), rule.resize(turned))
    view = pixels[:, ::2, 5:]
    assert torch.equal(rule.resize(view), rule.resize(view.clone()))


def test_an_image_of_the_right_size_is_left_alone():
    pixels = image(32, 48)
    assert torch.equal(Preprocess(short=32, long=64).resize(pixels), pixels)


def test_pad_and_normalise():
    rule = Preprocess(short=32, long=64, multiple=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    images = [image(32, 41, 1), image(40, 32, 2), image(1, 1, 3)]
    batch, sizes = rule.pad(images)
    assert batch.dtype == torch.uint8 and tuple(batch.shape) == (3, 3, 64, 64)
    assert sizes.dtype == torch.int64 and sizes.tolist() == [[32, 41], [40, 32], [1, 1]]
    kept = batch.clone()
    pixels = rule.normalise(batch, sizes)
    assert torch.equal(batch, kept) and pixels.dtype == torch.float32
    for row, floats, one in zip(batch, pixels, images, strict=True):
        height, width = one.shape[1:]
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(row[:, :height, :width], one) and not row[:, ~inside].any()
        assert (floats[:, ~inside] == 0).all()  # black is not 0 after normalisation: padding is
        expected = (one.double() / 255 - torch.tensor(rule.mean).double()[:, None, None]) / torch.tensor(
            rule.std
        ).double()[:, None, None]
        torch.testing.assert_close(floats[:, :height, :width].double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("multiple", "expected"), [(1, (40, 41)), (32, (64, 64)), (128, (128, 128))])
def test_multiple(multiple, expected):
    batch, _ = Preprocess(multiple=multiple).pad([image(32, 41), image(40, 32)])
    assert tuple(batch.shape[2:]) == expected


def test_a_full_size_is_not_padded_further():
    assert tuple(Preprocess().pad([image(64, 96)])[0].shape[2:]) == (64, 96)


def test_an_image_does_not_depend_on_its_neighbours():
    rule = Preprocess()
    small, large = image(20, 30, 1), image(90, 60, 2)
    alone, together = (rule.normalise(*rule.pad(images)) for images in ([small], [small, large]))
    assert torch.equal(alone[0], together[0, :, :32, :32]) and not together[0, :, 32:].any()


def test_normalise_keeps_channels_last():
    rule = Preprocess()
    batch, sizes = rule.pad([image(40, 50), image(30, 60)])
    planes = batch.contiguous()
    for pixels in (batch, planes.contiguous(memory_format=torch.channels_last)):
        assert rule.normalise(pixels, sizes).is_contiguous(memory_format=torch.channels_last)
    assert rule.normalise(planes, sizes).is_contiguous()
    assert torch.equal(rule.normalise(planes, sizes), rule.normalise(batch, sizes))


def test_normalise_leaves_float_pixels_to_their_owner():
    pixels = image(32, 32)[None].float()
    kept = pixels.clone()
    Preprocess().normalise(pixels, torch.tensor([[32, 32]]))
    assert torch.equal(pixels, kept)


def test_boxes_back_undoes_the_resize():
    generator = torch.Generator().manual_seed(0)
    rule = Preprocess(short=300, long=500)
    for height, width in ((480, 640), (97, 131), (1, 1), (1, 777), (2000, 900)):
        corners = torch.rand(50, 2, 2, generator=generator).sort(dim=1).values
        boxes = corners.flatten(1) * torch.tensor([width, height, width, height])
        resized = rule.size(height, width)
        forward = boxes * torch.tensor([resized[1] / width, resized[0] / height]).repeat(2)
        back = rule.boxes_back(forward, resized, (height, width))
        torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-4)


def test_boxes_back_clips():
    boxes = torch.tensor([[-10.0, -4.0, 500.0, 300.0], [20.0, 30.0, 40.0, 50.0], [99.0, 60.0, 400.0, 61.0]])
    assert Preprocess.boxes_back(boxes, (60, 100), (120, 50)).tolist() == [
        [0, 0, 50, 120],
        [10, 60, 20, 100],
        [49.5, 120, 50, 120],
    ]
    assert Preprocess.boxes_back(torch.zeros(0, 4), (60, 100), (120, 50)).shape == (0, 4)


# What older code bases do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),
        ((375, 500), (800, 1066)),
        ((426, 640), (800, 1201)),
        ((640, 360), (1333, 749)),
        ((612, 612), (800, 800)),
        ((578, 640), (799, 885)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_floored_sizes_as_torchvision_and_odtk_have_them(size, expected):
    assert Preprocess(compat=PreprocessCompat(rounding="floor")).size(*size) == expected


def test_some_short_sides_are_floored_to_799():
    """Against torch's own arithmetic, which torchvision leaves the size to."""
    rule = Preprocess(compat=PreprocessCompat(rounding="floor"))
    short = [side for side in range(200, 1300) if rule.size(side, side)[0] == 799]
    assert len(short) == 46 and {289, 305, 322, 334, 335, 539, 578, 607, 610, 644, 653} < set(short)
    for side in {*short, *range(200, 1300, 25)}:
        square = torch.empty(1, 1, side, side, device="meta")
        theirs = functional.interpolate(square, scale_factor=800 / side, mode="bilinear", recompute_scale_factor=True)
        assert rule.size(side, side) == tuple(theirs.shape[2:])
        assert Preprocess().size(side, side) == (800, 800)


def interleaved(pixels):
    """The same image with the three bytes of a pixel side by side, as decoders lay them out."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("sizes", [[(48, 64), (97, 61)], [(200, 90), (64, 64)], [(50, 120), (50, 50)]])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, interleaved])
def test_normalised_resampling_is_torchvisions_bit_for_bit(sizes, layout):
    images = [layout(image(*size, seed)) for seed, size in enumerate(sizes)]
    transform = GeneralizedRCNNTransform(50, 80, list(IMAGENET_MEAN), list(IMAGENET_STD)).eval()
    theirs, _ = transform([(pixels / 255).contiguous() for pixels in images])
    rule = Preprocess(short=50, long=80, compat=PreprocessCompat(rounding="floor", resampling="normalised"))
    batch, content = rule.pad([rule.resize(pixels) for pixels in images])
    assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)
    assert content.tolist() == [list(size) for size in theirs.image_sizes]
    assert len({tuple(size) for size in content.tolist()}) == 2
    assert torch.equal(batch, theirs.tensors)
    assert torch.equal(rule.normalise(batch, content), theirs.tensors), "they are not normalised twice"


@pytest.mark.parametrize("size", [(40, 61), (97, 33), (16, 20), (1, 9), (3, 200), (150, 150)])
def test_plain_resampling_is_bilinear_without_a_filter(size):
    rule, pixels = Preprocess(short=32, long=64, compat=PreprocessCompat(resampling="plain")), image(*size)
    got = rule.resize(pixels)
    assert got.dtype == torch.uint8 and tuple(got.shape) == (3, *rule.size(*size))
    expected = functional.interpolate(pixels[None].float(), size=got.shape[1:], mode="bilinear")[0]
    assert (got.float() - expected).abs().max() <= 1
    assert torch.equal(rule.resize(interleaved(pixels)), got)
    if min(size) > 64:  # a filter smooths the noise away
        assert (Preprocess(short=32, long=64).resize(pixels).float() - expected).abs().max() > 10
    same = image(32, 48)
    assert torch.equal(rule.resize(same), same)


COLOURS = [
    Preprocess(),
    Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), compat=PreprocessCompat(divisor=1)),
    Preprocess(mean=(103.53, 116.28, 123.675), std=(1, 1, 1), compat=PreprocessCompat(divisor=1, channels="BGR")),
    Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), compat=PreprocessCompat(channels="BGR", margin=1)),
]


@pytest.mark.parametrize("rule", COLOURS, ids=["torchvision", "mmdetection", "detectron2", "mixed"])
def test_colours_bit_for_bit(rule):
    """As each source computes it, in float32: divide, subtract, divide; a division by one changes nothing."""
    images = [image(32, 41, 1), image(40, 32, 2)]
    batch, sizes = rule.pad(images)
    kept, planes = batch.clone(), batch.contiguous()
    pixels = rule.normalise(batch, sizes)
    assert pixels.dtype == torch.float32 and torch.equal(batch, kept)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert rule.normalise(planes, sizes).is_contiguous() and torch.equal(rule.normalise(planes, sizes), pixels)
    for floats, one in zip(pixels.numpy(), images, strict=True):
        height, width = one.shape[1:]
        source = one.numpy().astype(numpy.float32)[:: -1 if rule.compat.channels == "BGR" else 1]
        mean, std = (numpy.array(value, dtype=numpy.float32)[:, None, None] for value in (rule.mean, rule.std))
        expected = (source / numpy.float32(rule.compat.divisor) - mean) / std
        assert numpy.array_equal(floats[:, :height, :width], expected)
        assert not floats[:, height:].any() and not floats[:, :, width:].any()


def test_margin_pads_sizes_that_fit_already():
    rule = Preprocess(compat=PreprocessCompat(margin=1))
    for side in range(1, 130):
        padded = tuple(rule.pad([torch.zeros(3, side, 64, dtype=torch.uint8)])[0].shape[2:])
        assert padded == (side + 32 - side % 32, 96)  # as yhenon's code has it
    batch, sizes = rule.pad([image(32, 20), image(17, 32)])
    assert tuple(batch.shape[2:]) == (64, 64) and sizes.tolist() == [[32, 20], [17, 32]]
    assert tuple(Preprocess().pad([image(32, 20)])[0].shape[2:]) == (32, 32)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"short": 900, "long": 800}, "0 < short <= long, got short 900 and long 800"),
        ({"short": 0}, "0 < short <= long, got short 0"),
        ({"multiple": 0}, "multiple of at least 1, got 0"),
        ({"std": (0.2, 0.0, 0.2)}, "std above 0; got .* and .*0.0, 0.2"),
        ({"mean": (0.5, 0.5)}, "three numbers each"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(UserError, match=match):
        Preprocess(**options)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_batches_of_one_size(batch_size):
    sizes = [(32, 64), (64, 32), (32, 64), (32, 64), (64, 64), (64, 32), (32, 64)]
    batches = batches_of_one_size(sizes, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(len({sizes[index] for index in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    fewest = sum(-(-sizes.count(size) // batch_size) for size in set(sizes))
    assert len(batches) == fewest and batches == sorted(batches)  # each is in order, and so are their first images
    assert batches_of_one_size([], batch_size) == []


@pytest.mark.parametrize(
    "rule", [Preprocess(), Preprocess(multiple=128), Preprocess(compat=PreprocessCompat(margin=1))]
)
def test_padded_is_what_padding_gives(rule):
    for height, width in ((32, 64), (31, 65), (1, 128)):
        batch, _ = rule.pad([torch.ones(3, height, width, dtype=torch.uint8)])
        assert tuple(batch.shape[2:]) == rule.padded(height, width)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"divisor": 0.0}, "compat.divisor of images is above 0, got 0.0"),
        ({"margin": -1}, "compat.margin of images is at least 0, got -1"),
        ({"channels": "GBR"}, "compat.channels of images is RGB or BGR, got 'GBR'"),
        ({"rounding": "up"}, "compat.rounding of images is nearest or floor, got 'up'"),
        ({"resampling": "bicubic"}, "compat.resampling of images is antialiased or plain or normalised, got 'bicubic'"),
    ],
)
def test_mistakes_of_compat(options, match):
    with pytest.raises(UserError, match=match):
        PreprocessCompat(**options)
