"""Many images: in order, bounded, and no thread left behind."""

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.inference.backend import Prepared
from retinanet.inference.predictor import Predictor
from retinanet.inference.stream import in_order, stream_detections
from retinanet.spec import ModelSpec
from retinanet.types import Detections


class Counter:
    """A backend whose detections say which image they are of; it notes what is asked of it."""

    spec, name = ModelSpec(("a",)), "counter"

    def __init__(self, streams=1):
        self.streams = streams
        self.batches, self.prepared, self.threads = [], 0, set()
        self.lock = threading.Lock()

    def prepare(self, image, rule=None):
        with self.lock:
            self.prepared += 1
        return Prepared(image, image.shape[:2], image.shape[:2])

    def run(self, images):
        with self.lock:
            self.batches.append(len(images))
            self.threads.add(threading.current_thread())
        return [Detections(np.zeros((1, 4)), np.ones(1), image.pixels[0, :1, 0], ("a",)) for image in images]


def picture(number):
    return np.full((1, 1, 3), number, np.uint8)


def numbers(found):
    return [int(one.labels[0]) for one in found]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 37])
@pytest.mark.parametrize("workers", [None, 1, 4])
def test_results_are_in_order(streams, count, workers):
    backend = Counter(streams)
    predictor = Predictor(backend, batch_size=4)
    assert numbers(predictor.stream(map(picture, range(count)), workers=workers)) == list(range(count))
    sizes = [4] * (count // 4) + ([count % 4] if count % 4 else [])
    assert sorted(backend.batches) == sorted(sizes if streams == 1 else [1] * count)
    assert numbers(predictor([picture(number) for number in range(count)])) == list(range(count))


def test_calls_go_on_at_once():
    """Each call waits for another one: one after the other they would never end."""
    meet = threading.Barrier(2, timeout=60)
    backend = Counter(2)
    run = backend.run
    backend.run = lambda images: (meet.wait(), run(images))[1]
    assert numbers(Predictor(backend).stream(map(picture, range(6)))) == list(range(6))
    assert len(backend.threads) == 2


@pytest.mark.parametrize(("streams", "batch_size", "workers"), [(1, 4, 2), (1, 1, 1), (3, 8, 2)])
def test_no_more_are_read_than_are_needed_soon(streams, batch_size, workers):
    taken = itertools.count()
    last = 0

    def endless():
        nonlocal last
        for last in taken:
            yield picture(last % 256)

    backend = Counter(streams)
    stream = Predictor(backend, batch_size=batch_size).stream(endless(), workers=workers)
    size = 1 if streams > 1 else batch_size
    for given in range(1, 200):
        next(stream)
        assert last + 1 <= given + size * (streams + 1) + workers
    stream.close()
    assert backend.prepared <= last + 1


def test_a_caller_who_stops_leaves_no_threads():
    before = set(threading.enumerate())
    stream = Predictor(Counter(2)).stream(map(picture, itertools.repeat(1)))
    assert numbers(itertools.islice(stream, 5)) == [1] * 5
    assert set(threading.enumerate()) - before
    stream.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("bad", [0, 2, 5, 6])
def test_an_image_that_cannot_be_read_is_told_in_its_place(streams, bad):
    before = set(threading.enumerate())
    images = [picture(number) for number in range(7)]
    images[bad] = "nowhere.png"
    seen = []
    with pytest.raises(UserError, match=r"nowhere\.png: no such image file"):
        seen.extend(Predictor(Counter(streams), batch_size=3).stream(images))
    with pytest.raises(UserError, match=r"nowhere\.png"):
        for one in Predictor(Counter(streams), batch_size=3).stream(images):
            seen.append(one)
    assert numbers(seen[-bad:] if bad else []) == list(range(bad))
    assert set(threading.enumerate()) <= before


def test_errors_of_the_backend_come_through():
    backend = Counter()
    backend.run = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(Predictor(backend).stream([picture(1)]))
    with pytest.raises(MemoryError):
        list(stream_detections(Counter(), lambda item: (_ for _ in ()).throw(MemoryError), [1], batch_size=1))


def test_workers_out_of_range():
    with pytest.raises(UserError, match="workers is at least 1, got 0"):
        Predictor(Counter()).stream([], workers=0)


def test_in_order_begins_no_more_than_asked_for():
    begun = []

    def submit(function, item):
        begun.append(item)
        return function(item)

    results = in_order(SimpleNamespace(submit=submit), lambda item: -item, range(10), ahead=3)
    for number, result in enumerate(results):
        assert result == -number and len(begun) == min(number + 4, 10)


def test_images_of_other_sizes_do_not_change_what_is_found():
    """A call has images of one input size only, in their order, also where their content differs."""

    calls = []

    class Backend:
        streams = 1

        def run(self, images):
            calls.append([image.input_size for image in images])
            return [image.size for image in images]

    items = [(8, 8), (8, 16), (8, 7), (16, 8), (7, 15)]
    rule = Preprocess(multiple=8)
    prepare = lambda item: Prepared(np.zeros((*item, 3), np.uint8), item, rule.padded(*item))  # noqa: E731
    assert list(stream_detections(Backend(), prepare, items, batch_size=5)) == items
    assert calls == [[(8, 8)] * 2, [(8, 16)] * 2, [(16, 8)]]
