"""The rules by which the data and the machine decide a training; each says why, and where that comes from.

Measured means a table in docs/results/planning.md or recipe.md. The rules use nothing but their arguments, so the same
facts give the same plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from retinanet.images.preprocess import Preprocess
from retinanet.planning.fingerprint import Fingerprint
from retinanet.planning.machine import GB, Host

LARGE_GPU = 7 * GB  # from which on a ResNet-50 with images of 800 pixels is trained
SMALL_SIDE = 32  # pixels that small boxes should have: COCO's border of small, four cells of the finest level
LEAST_SIDE = 16  # that they need: two cells
STEP = 32  # of image sizes
CAP = {"cpu": (640, 1067), "mps": (640, 1067), "cuda": (800, 1333)}  # the paper's on a GPU
USUAL_SHORT, LEAST_SHORT = 384, 128  # of large objects: where time allows, and where it does not (measured)
WINDOW = {"cpu": 512, "mps": 512, "cuda": 800}  # sides of windows as the network sees them
LONGEST = 5 / 3  # long by short side at most, as 1333 by 800
VIEWS, GOOD_VIEWS, LEAST_VIEWS = 10_000, 2_500, 800  # images shown in a training: enough, good, least
OBJECTS_OF_A_VIEW, LEAST_SHARE = 14, 1 / 8  # of the images behind these numbers; crowded ones need an eighth at least
EPOCHS, MOST_EPOCHS, GOOD_EPOCHS = 12, 72, 3
DETECTIONS, CANDIDATES = 100, 1000  # COCO's and the paper's
ROOM, CANDIDATES_EACH = 1.5, 4  # detections for the objects of the fullest image; candidates of a level for each
BATCH = {"cpu": 8, "mps": 8, "cuda": 16}
FILL = 0.85  # of the memory that a plan may take
SPARE = 0.9  # of a budget that a plan uses
EVALUATIONS = 20  # of a training, at most
SIDES = ("left", "right")


def choose_model(host: Host) -> tuple[str, str]:
    """The preset for a device."""
    if host.device_memory is None:
        return (
            "lite",
            f"on a {host.device.upper()} it takes a fifth of a ResNet-50's time (docs/results/benchmarks.md)",
        )
    if host.device_memory >= LARGE_GPU:
        return "resnet50", "the paper's most used backbone; it fits into the GPU"
    return "resnet18", f"the GPU has {host.device_memory / GB:.0f} GB, a ResNet-50 needs {LARGE_GPU / GB:.0f}"


def choose_depth(model: str) -> tuple[int, str] | None:
    """Hidden convolutions of the towers, where not the preset's."""
    if model != "lite":
        return None
    return 2, "1.3 times as fast as 4, and AP 0.616 on blood cells (docs/results/recipe.md)"


@dataclass(frozen=True)
class Size:
    """A size of training images, with the side that small boxes have then."""

    short: int
    long: int
    small: float

    def pixels(self, facts: Fingerprint) -> float:
        """Of the padded input, for images of the median shape."""
        height, width = self.input(facts)
        return float(height * width)

    def input(self, facts: Fingerprint) -> tuple[int, int]:
        """(height, width) of the padded input for images of the median shape, upright."""
        rule = Preprocess(short=self.short, long=self.long, multiple=STEP)
        short, long = rule.padded(*rule.size(round(facts.short.median) or 1, round(facts.long.median) or 1))
        return short, long


def list_sizes(facts: Fingerprint, device: str) -> list[Size]:
    """Sizes of images from the one that the boxes ask for down to the least that they bear."""
    short, small = max(1.0, facts.short.median), facts.small or SMALL_SIDE
    largest = 2.0 if small < LEAST_SIDE else 1.0  # enlarging shows nothing new, but cells are 8 pixels wide
    most, longest = CAP[device]
    ratio = min(max(facts.long.median / short, 1.0) * 1.05, LONGEST)
    wanted = short * min(SMALL_SIDE / small, largest)
    wanted = min(max(wanted, min(short, USUAL_SHORT)), most)
    least = max(min(short * LEAST_SIDE / small, wanted), min(wanted, LEAST_SHORT))
    sizes = []
    for side in range(to_step(wanted), to_step(least) - 1, -STEP):
        long = min(to_step(side * ratio), to_step(longest))
        scale = min(side / short, long / max(1.0, facts.long.median))
        sizes.append(Size(side, long, small * scale))
    return sizes


def complete_size(given: tuple[int | None, int | None], default: tuple[int, int]) -> tuple[int, int]:
    """Short and long side of which one may be given: the other keeps the default's shape, or makes room."""
    short, long = given
    if short is None:
        return (default[0], default[1]) if long is None else (min(default[0], long), long)
    return short, long or max(short, math.ceil(short * default[1] / default[0]))


def to_step(side: float) -> int:
    """The next multiple of ``STEP``, at least one."""
    return max(1, round(side / STEP)) * STEP


def choose_tile(facts: Fingerprint, device: str) -> tuple[int | None, str]:
    """Side of the windows to train on, in pixels of the images; None where whole images do.

    Windows are taken where small boxes would have fewer pixels than they need once a whole image is as small as the
    device bears.
    """
    most, longest = CAP[device]
    short, long, small = max(1.0, facts.short.median), max(1.0, facts.long.median), facts.small or SMALL_SIDE
    whole = small * min(1.0, most / short, longest / long)
    scale = find_window_scale(facts)
    tile = to_step(WINDOW[device] / scale)
    if whole >= LEAST_SIDE or tile >= long:
        return None, ""
    seen = f"small boxes ({small:.3g} pixels) would get {whole:.2g} pixels in a whole image of {most}"
    return tile, f"{seen}; docs/results/tiles.md"


def find_window_scale(facts: Fingerprint) -> float:
    """How large windows are shown, relative to their own pixels: small boxes as large as they should be, at most 1."""
    return min(1.0, SMALL_SIDE / (facts.small or SMALL_SIDE))


def explain_size(size: Size, facts: Fingerprint, device: str) -> str:
    """Why a size is taken."""
    cells = f"{SMALL_SIDE} are four cells of the finest level"
    text = f"small boxes ({facts.small:.3g} pixels) get {size.small:.3g} pixels; {cells}"
    if size.short >= facts.short.median:
        return f"{text}; the images have no more" if size.short <= facts.short.median + STEP else text
    if size.short == CAP[device][0] and size.small < SMALL_SIDE:
        return f"{text}; more than {size.short} would take too long on a {device}"
    return text


def full_epochs(facts: Fingerprint) -> tuple[int, str]:
    """Passes over the images when time does not matter."""
    views = count_views(VIEWS, facts)
    epochs = min(max(EPOCHS, math.ceil(views / facts.images)), MOST_EPOCHS)
    if epochs == EPOCHS:
        return epochs, f"the paper's schedule; {facts.images:,} images are enough for it"
    return epochs, f"so that few images are shown about {views:,} times in all, {MOST_EPOCHS} each at most"


def good_epochs(facts: Fingerprint) -> int:
    """Passes from which on larger images are worth more than further passes."""
    return max(GOOD_EPOCHS, math.ceil(count_views(GOOD_VIEWS, facts) / facts.images))


def least_epochs(facts: Fingerprint) -> int:
    """Fewest passes that train anything."""
    return max(1, math.ceil(count_views(LEAST_VIEWS, facts) / facts.images))


def count_views(views: int, facts: Fingerprint) -> int:
    """Fewer where each image shows many objects: what is learnt comes from them."""
    objects = facts.boxes / facts.images
    return round(views * min(1.0, max(OBJECTS_OF_A_VIEW / max(objects, 1.0), LEAST_SHARE)))


def choose_limits(facts: Fingerprint) -> tuple[tuple[int, str], tuple[int, str]]:
    """The most detections of an image, and the most candidates of a level."""
    most = int(facts.objects.most)
    room = max(DETECTIONS, math.ceil(most * ROOM / 50) * 50)
    why = f"the fullest image has {most} objects"
    detections = (room, f"{why}, and half as many again are allowed" if room > DETECTIONS else f"COCO's; {why}")
    candidates = max(CANDIDATES, CANDIDATES_EACH * room if room > DETECTIONS else 0)
    reason = f"{CANDIDATES_EACH} for each detection" if candidates > CANDIDATES else "the paper's"
    return detections, (candidates, reason)


def choose_batch(facts: Fingerprint, device: str) -> tuple[int, str]:
    """Images of an optimiser step."""
    batch = BATCH[device]
    while batch > 1 and facts.images < 4 * batch:
        batch //= 2
    if batch == BATCH[device]:
        return batch, "the paper's" if batch == 16 else "half the paper's, so that few images still make many steps"
    return batch, f"{facts.images} images make four steps of an epoch at least"


def choose_interval(epochs: int) -> tuple[int, str]:
    """Epochs between two evaluations."""
    interval = math.ceil(epochs / EVALUATIONS)
    return interval, f"{math.ceil(epochs / interval)} evaluations; each takes a fraction of an epoch"


def choose_workers(host: Host) -> tuple[int, str]:
    """Processes that read images."""
    if host.device_memory is None:
        workers = 1 if host.cores <= 4 else 2
        return workers, f"the {host.cores} cores compute; reading takes a small part of one"
    workers = max(1, min(8, host.cores - 1))
    return workers, f"of {host.cores} cores, so that the GPU never waits"


def choose_flip(class_names: Sequence[str]) -> tuple[float, str]:
    """The chance of a mirror image."""
    sided = [name for name in class_names if set(SIDES) & set(re.findall("[a-z]+", name.lower()))]
    if sided:
        return 0.0, f"a mirror image of {sided[0]} would have the wrong name"
    return 0.5, "the paper's; where there is no up, as in cells and aerial views, augment.vflip 0.5 helps too"
