import io
import os
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.errors import UserError
from retinanet.images import colours
from retinanet.images.io import IMAGE_SUFFIXES, image_size, read_image, read_pixels

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # 5 rows, 7 columns
LOSSLESS = [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True, "exact": True}), ("a.bmp", {}), ("a.ppm", {})]

# What EXIF says of the stored rows and columns (TIFF 6.0, tag 274), written with numpy as an independent reference.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def pixels(path, **options):
    image = read_image(path, **options)
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.is_contiguous()
    assert image_size(path) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).numpy()


def grey_of(path):
    rgb = pixels(path)
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


@pytest.mark.parametrize(("name", "options"), LOSSLESS)
def test_rgb_pixels_come_back_as_they_were(tmp_path, name, options):
    Image.fromarray(RGB).save(tmp_path / name, **options)
    assert (pixels(tmp_path / name) == RGB).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path, name, orientation):
    stored = np.zeros((16, 40, 3), np.uint8)
    stored[:8, :20], stored[:8, 20:], stored[8:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {"quality": 95} if name.endswith("jpg") else {}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
    wanted = UPRIGHT[orientation](stored)
    found = pixels(tmp_path / name)
    assert found.shape == wanted.shape
    assert (
        np.abs(found[2::4, 2::4].astype(int) - wanted[2::4, 2::4]).max() <= 12
    )  # JPEG blurs the middle lines a little


def test_an_orientation_that_does_not_exist_and_damaged_exif_leave_the_image_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.fromarray(RGB).save(tmp_path / "nine.png", exif=exif)
    Image.fromarray(RGB).save(tmp_path / "damaged.png", exif=b"Exif\0\0MM\0*\0\0\xff\xffrubbish")
    assert (pixels(tmp_path / "nine.png") == RGB).all()
    assert (pixels(tmp_path / "damaged.png") == RGB).all()


def test_grey_and_one_bit(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    assert (grey_of(tmp_path / "grey.png") == RGB[..., 0]).all()
    Image.fromarray(RGB[..., 0] > 127).save(tmp_path / "bit.png")
    assert (grey_of(tmp_path / "bit.png") == np.where(RGB[..., 0] > 127, 255, 0)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_white(tmp_path, mode):
    channels = 4 if mode == "RGBA" else 2
    data = np.full((2, 3, channels), 40, np.uint8)
    data[..., -1] = [[0, 128, 255], [0, 128, 255]]
    Image.fromarray(data, mode).save(tmp_path / "a.png")
    wanted = 255 + (40 - 255) * np.array([0, 128, 255]) / 255
    assert np.abs(grey_of(tmp_path / "a.png").astype(float) - wanted).max() <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    colours = np.array([(200, 10, 10), (10, 200, 10), (10, 10, 200)], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "index.gif", transparency=1)
    image.save(tmp_path / "bytes.png", transparency=b"\xff\x00\xff")
    assert (pixels(tmp_path / "plain.png") == colours[indices]).all()
    over_white = colours.copy()
    over_white[1] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels(tmp_path / "index.gif") == over_white[indices]).all()
        assert (pixels(tmp_path / "bytes.png") == over_white[indices]).all()


def test_cmyk(tmp_path):
    Image.fromarray(np.full((8, 8, 4), (0, 255, 255, 0), np.uint8), "CMYK").save(tmp_path / "red.tif")
    assert (pixels(tmp_path / "red.tif") == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 300, 4095], [32768, 65000, 65407, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert (grey_of(tmp_path / name) == np.rint(values / 257)).all()


def test_big_endian_sixteen_bit(tmp_path):
    values = np.array([[0, 1000, 65535]], np.uint16)
    Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert (grey_of(tmp_path / "a.tif") == np.rint(values / 257)).all()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.float32([[0, 0.5, 1]]), [[0, 128, 255]]),
        (np.float32([[0, 100, 255]]), [[0, 100, 255]]),
        (np.float32([[0, 1000, 2000]]), [[0, 128, 255]]),
        (np.float32([[-1, 0, 1]]), [[0, 128, 255]]),
        (np.float32([[np.nan, np.inf, 1]]), [[0, 0, 255]]),
        (np.float32([[7000, 7000, 7000]]), [[0, 0, 0]]),
        (np.float32([[np.nan, np.nan, np.nan]]), [[0, 0, 0]]),
        (np.int32([[0, 1, 200]]), [[0, 1, 200]]),
        (np.int32([[0, 257, 65535]]), [[0, 1, 255]]),
        (np.int32([[0, 50_000, 100_000]]), [[0, 128, 255]]),
        (np.int32([[-100, 0, 100]]), [[0, 128, 255]]),
    ],
)
def test_thirty_two_bit_images(tmp_path, values, wanted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert (grey_of(tmp_path / "a.tif") == wanted).all()


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "a.tif") == (255, 0, 0)).all()


def jpeg(size=(300, 200)):
    stream = io.BytesIO()
    Image.effect_noise(size, 80).save(stream, "JPEG")
    return stream.getvalue()


def png(size=(300, 200)):
    stream = io.BytesIO()
    Image.effect_noise(size, 80).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("make", [jpeg, png])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_images_are_refused(tmp_path, make, part):
    data = make()
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match=r"cut\.img: the image is truncated or damaged .* Replace it"):
        read_image(path)


@pytest.mark.parametrize(
    "data", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"GIF89a"]
)
def test_what_is_not_an_image_is_refused(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    for function in (read_image, image_size):
        with pytest.raises(UserError, match=r"a\.jpg: .*(is not an image|cannot be read as an image)"):
            function(tmp_path / "a.jpg")


def test_formats_that_start_programs_are_never_tried(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(UserError, match="is not an image"):
        read_image(tmp_path / "a.jpg")


def test_missing_files_and_folders(tmp_path):
    for function in (read_image, image_size):
        with pytest.raises(UserError, match="no such image file"):
            function(tmp_path / "nowhere.jpg")
        with pytest.raises(UserError, match="is a folder"):
            function(tmp_path)
        with pytest.raises(UserError, match="cannot be read"):
            function("a\0b.jpg")


def bomb(width, height):
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_images_over_the_limit_are_refused_before_decoding(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(bomb(10_000, 10_000))  # Pillow itself would only warn
    monkeypatch.setattr(Image.Image, "convert", None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert image_size(tmp_path / "bomb.png") == (60_000, 60_000)
        with pytest.raises(
            UserError, match=r"bomb\.png: .*over the limit of 200,000,000 pixels.*not decoded.*max_pixels"
        ):
            read_image(tmp_path / "bomb.png")
        with pytest.raises(UserError, match=r"100,000,000 pixels are over the limit of 99,000,000"):
            read_image(tmp_path / "large.png", max_pixels=99_000_000)
        with pytest.raises(UserError, match="truncated or damaged"):  # within the limit: it is decoded
            read_image(tmp_path / "large.png", max_pixels=100_000_000)
    assert told == []


def test_the_limit_is_exact_and_can_be_raised(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png", max_pixels=35) == RGB).all()
    with pytest.raises(UserError, match="over the limit of 34 pixels"):
        read_image(tmp_path / "a.png", max_pixels=34)


def test_reading_in_threads_leaves_no_trace_in_pillow_or_in_the_warnings(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(png()[:2000])
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def read(number):
        path = tmp_path / ("broken.png" if number % 3 == 0 else "a.png")
        try:
            return read_image(path, max_pixels=10**6 + number).shape
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(300)))
    assert found.count(None) == 100 and set(found) == {None, torch.Size((3, 5, 7))}
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_any_damage_is_a_user_error(tmp_path):
    random = np.random.default_rng(0)
    for make in (jpeg, png):
        whole = np.frombuffer(make((40, 30)), np.uint8)
        for _ in range(100):
            data = whole.copy()
            data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            (tmp_path / "a").write_bytes(data.tobytes()[: random.integers(1, len(data) + 1)])
            for function in (read_image, image_size):
                try:
                    function(tmp_path / "a")
                except UserError as error:
                    assert str(tmp_path / "a") in str(error)


def test_suffixes_are_lower_case_and_dotted():
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"} <= set(IMAGE_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_pixels, image_size):
        with pytest.raises(UserError, match=r"a\.png: is a named pipe or a device, an image file was expected"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(("name", "kind"), [("a.png", np.uint16), ("a.tif", np.float32), ("b.png", np.uint8)])
def test_reading_takes_little_memory_beside_the_pixels(tmp_path, monkeypatch, name, kind):
    Image.fromarray(np.zeros((1000, 1000), kind)).save(tmp_path / name)
    monkeypatch.setattr(colours, "_STRIP", 10_000)
    tracemalloc.start()
    result = read_pixels(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]  # what Pillow itself holds, 1 to 4 bytes a pixel, is not in it
    tracemalloc.stop()
    assert result.nbytes < peak < 1.7 * result.nbytes  # a float64 copy of the whole would be 3.7 times as much


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    held: list[bool] = []
    for large, expected in ((RGB[..., 0].size, False), (RGB[..., 0].size - 1, True)):
        monkeypatch.setattr(colours, "LARGE", large)
        with Image.open(tmp_path / "a.png") as image:
            load = image.load
            monkeypatch.setattr(image, "load", lambda load=load: (held.append(colours._one_at_a_time.locked()), load()))
            colours.picture_array(image)
        assert held[0] is expected
        held.clear()


def test_conversion_by_strips_and_turned_is_that_of_the_whole(tmp_path, monkeypatch):
    exif = Image.Exif()
    for orientation, turn in UPRIGHT.items():
        exif[0x0112] = orientation
        for number, mode in enumerate(("RGB", "L", "P", "CMYK", "RGBA", "1")):
            file = tmp_path / f"{orientation}{number}.{'jpg' if mode == 'CMYK' else 'png'}"
            Image.fromarray(RGB).convert(mode).save(file, exif=exif)
            whole = read_pixels(file)
            monkeypatch.setattr(colours, "_STRIP", 2 * 7)  # two rows of the five
            assert (read_pixels(file) == whole).all()
            monkeypatch.undo()
            if mode == "RGB":
                assert (whole == turn(RGB)).all()


@pytest.fixture
def told(monkeypatch):
    """Warnings as a new process gives them."""
    monkeypatch.setattr("retinanet.images.colours._told", set())


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12)])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_depths_below_sixteen_bits(tmp_path, told, caplog, name, largest, bits):
    values = np.array([[0, largest // 3, largest]], np.uint16)
    for number in range(2):
        Image.fromarray(values).save(tmp_path / f"{number}{name}")
        assert (grey_of(tmp_path / f"{number}{name}") == np.rint(values * 255.0 / (2**bits - 1))).all()
    assert len(caplog.records) == 1 and f"images of {bits} bits" in caplog.text


def test_values_above_twelve_bits_are_sixteen_bits(tmp_path, told, caplog):
    values = np.array([[0, 1000, 4096]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (grey_of(tmp_path / "a.png") == np.rint(values / 257)).all() and not caplog.records


@pytest.mark.parametrize(("extra", "shown"), [(None, "bands"), (0, "bands"), (2, "over white")])
def test_the_fourth_band_of_a_tiff_is_what_the_file_says(tmp_path, told, caplog, extra, shown):
    """ExtraSamples (tag 338) 2 is transparency; without it, or with 0, the band may be near infrared."""
    pixels = np.full((4, 5, 4), (200, 100, 50, 0), np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.tif", compression="raw")
    content = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHII", 338, 3, 1, 2)
    assert content.count(entry) == 1
    other = {None: struct.pack("<HHII", 337, 3, 1, 2), 0: struct.pack("<HHII", 338, 3, 1, 0), 2: entry}[extra]
    (tmp_path / "a.tif").write_bytes(content.replace(entry, other))
    wanted = (255, 255, 255) if shown == "over white" else (200, 100, 50)
    assert (read_pixels(tmp_path / "a.tif") == wanted).all()
    assert ("bands beyond the first three" in caplog.text) == (shown == "bands")


def test_tiffs_of_other_numbers_are_named(tmp_path):
    tags = [(256, 2), (257, 1), (258, 64), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 16), (339, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 24) + bytes(16) + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.tif: is a TIFF file with 1 band of floats of 64 bits, which cannot be read"
    ):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "words"),
    [("https://example.org/a.jpg", "is an address"), ("folder/*.png", "in Python, pass glob.glob"), ("a.png", "Check")],
)
def test_what_is_no_file(name, words):
    with pytest.raises(UserError, match=words):
        read_pixels(name)
