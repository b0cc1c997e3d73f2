"""The resize rule on arrays against the same rule on tensors."""

import numpy as np
import pytest
import torch

from retinanet.images.arrays import boxes_back, pad_arrays, resize_array
from retinanet.images.preprocess import Preprocess, PreprocessCompat

SIZES = [(40, 61), (97, 33), (16, 20), (1, 1), (1, 9), (3, 200), (150, 150), (480, 640), (64, 33)]
RULES = [(32, 64), (101, 203), (384, 512)]
CAFFE = {"mean": (102.98, 115.95, 122.77), "std": (1.0, 58.4, 57.1)}


def photo(height, width, seed=0):
    """(H, W, 3) uint8: smooth, with edges and a little noise."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (7 + 5 * c) + c) * np.cos(y / (11 - 2 * c)) for c in range(3)]
    image = np.stack(waves, axis=-1) + dice.normal(0, 4, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 120)
    return image.clip(0, 255).astype(np.uint8)


def noise(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def both(rule, image):
    """(h, w, 3) of the array and of the tensor."""
    array, tensor = resize_array(rule, image), rule.resize(torch.from_numpy(image).permute(2, 0, 1)).numpy()
    if rule.compat.resampling == "normalised":
        array = array.transpose(1, 2, 0)
    tensor = tensor.transpose(1, 2, 0)
    assert array.shape == tensor.shape and array.dtype == tensor.dtype
    return array, tensor


@pytest.mark.parametrize(("short", "long"), RULES)
@pytest.mark.parametrize("size", SIZES)
def test_antialiased_is_within_two_levels(size, short, long):
    """Pillow and torch round weights to different precision.

    Measured: 2 levels at most; a value in five differs where an image of 97 x 33 becomes one of 64 x 22, one in
    thirteen from 640 x 480 to 512 x 384, and one in a hundred elsewhere.
    """
    rule = Preprocess(short=short, long=long)
    for image in (photo(*size), noise(*size)):
        array, tensor = both(rule, image)
        gap = np.abs(array.astype(int) - tensor)
        assert gap.max() <= 2 and gap.mean() <= 0.25


@pytest.mark.parametrize(("short", "long"), RULES)
@pytest.mark.parametrize("size", SIZES)
def test_plain_is_the_same(size, short, long):
    """Torch's vectorised path, to the last bit; its other path (older CPUs) rounds once, hence a level."""
    rule = Preprocess(short=short, long=long, compat=PreprocessCompat(resampling="plain"))
    most = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX") else 1
    for image in (photo(*size), noise(*size)):
        array, tensor = both(rule, image)
        assert np.abs(array.astype(int) - tensor).max() <= most


@pytest.mark.parametrize(("options", "compat"), [({}, {}), (CAFFE, {"divisor": 1.0, "channels": "BGR"})])
@pytest.mark.parametrize("size", SIZES)
def test_normalised_differs_by_rounding(size, options, compat):
    """Torch takes one of several kernels, which place the samples differently in the last bit of a coordinate.

    Measured, in units of the largest value: 3e-7 beside its kernel for one thread, 3e-5 beside the others.
    """
    rule = Preprocess(short=101, long=203, compat=PreprocessCompat(resampling="normalised", **compat), **options)
    array, tensor = both(rule, noise(*size))
    np.testing.assert_allclose(array, tensor, rtol=0, atol=1e-4 * np.abs(tensor).max())


@pytest.mark.parametrize("resampling", ["antialiased", "plain"])
def test_what_fits_is_not_copied(resampling):
    image = photo(32, 48)
    assert resize_array(Preprocess(short=32, long=48, compat=PreprocessCompat(resampling=resampling)), image) is image


@pytest.mark.parametrize("resampling", ["antialiased", "plain", "normalised"])
def test_any_layout_in_memory(resampling):
    rule = Preprocess(short=32, long=64, compat=PreprocessCompat(resampling=resampling))
    image = photo(50, 70)[::-1, ::-1]
    np.testing.assert_array_equal(resize_array(rule, image), resize_array(rule, image.copy()))
    np.testing.assert_array_equal(resize_array(rule, np.asfortranarray(image)), resize_array(rule, image.copy()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multiple": 1},
        *({"compat": PreprocessCompat(**one)} for one in ({"margin": 1}, {"resampling": "normalised"})),
    ],
)
def test_padding_is_that_of_tensors(options):
    rule = Preprocess(short=20, long=64, **options)
    images = [resize_array(rule, photo(*size)) for size in ((30, 40), (64, 32), (20, 20))]
    tensors = [torch.from_numpy(i if i.dtype == np.float32 else i.transpose(2, 0, 1).copy()) for i in images]
    (batch, sizes), (wanted, wanted_sizes) = pad_arrays(rule, images), rule.pad(tensors)
    assert batch.flags.c_contiguous and batch.dtype == images[0].dtype and sizes.dtype == np.int64
    np.testing.assert_array_equal(batch, wanted.numpy())
    np.testing.assert_array_equal(sizes, wanted_sizes.numpy())


def test_boxes_go_back_as_tensors_do():
    dice = np.random.default_rng(2)
    boxes = dice.uniform(-20, 700, (500, 4)).astype(np.float32)
    for resized, original in (((384, 512), (480, 640)), ((101, 203), (1, 2)), ((640, 640), (997, 1003))):
        wanted = Preprocess.boxes_back(torch.from_numpy(boxes), resized, original).numpy()
        got = boxes_back(boxes, resized, original)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
    assert boxes_back(boxes[:0], (3, 3), (5, 5)).shape == (0, 4)
