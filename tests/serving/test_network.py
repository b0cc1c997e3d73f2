"""The queue before the network: batches, places, time limits, and what is finished when it closes."""

import threading
from concurrent.futures import CancelledError

import httpx
import numpy as np
import pytest

from retinanet.inference.backend import Prepared
from retinanet.inference.predictor import Predictor
from retinanet.serving.limits import Limits, Refusal
from retinanet.serving.network import NetworkQueue


class Gate:
    """A backend whose calls wait until they are let go; results are the pixels."""

    def __init__(self, streams=1):
        self.streams, self.open, self.calls = streams, threading.Event(), []
        self.entered = threading.Semaphore(0)

    def run(self, images):
        self.entered.release()
        assert self.open.wait(30)
        self.calls.append([image.pixels for image in images])
        if any(image.pixels == "bad" for image in images):
            raise RuntimeError("no such image")
        return [image.pixels for image in images]


def image(name, side=32):
    return Prepared(name, (1, 1), (side, side))


def test_images_that_wait_share_a_call_where_their_input_has_one_size():
    gate = Gate()
    queue = NetworkQueue(gate, batch_size=3, places=100)
    futures = [queue.submit(image("first"))]
    assert gate.entered.acquire(timeout=30)
    futures += [queue.submit(image(name, 64 if name == "b" else 32)) for name in "abcde"]
    futures.append(queue.submit_call(lambda: "called"))
    gate.open.set()
    assert [future.result(30).result for future in futures] == ["first", *"abcde", "called"]
    assert gate.calls == [["first"], ["a", "c", "d"], ["b"], ["e"]]
    queue.close()
    with pytest.raises(Refusal, match="stopping"):
        queue.submit(image("late"))


def test_streams_have_an_image_each():
    gate = Gate(streams=2)
    queue = NetworkQueue(gate, batch_size=8, places=100)
    futures = [queue.submit(image(name)) for name in "abcd"]
    assert gate.entered.acquire(timeout=30) and gate.entered.acquire(timeout=30)  # two at once
    gate.open.set()
    assert [future.result(30).result for future in futures] == list("abcd")
    assert sorted(gate.calls) == [["a"], ["b"], ["c"], ["d"]]
    queue.close()


def test_a_failed_call_is_told_to_who_waits_and_the_thread_lives_on():
    gate = Gate()
    gate.open.set()
    queue = NetworkQueue(gate, batch_size=1, places=100)
    with pytest.raises(RuntimeError, match="no such image"):
        queue.submit(image("bad")).result(30)
    assert queue.submit(image("good")).result(30).result == "good"
    queue.close()


def test_who_has_gone_is_left_out_and_what_waits_is_finished():
    gate = Gate()
    queue = NetworkQueue(gate, batch_size=1, places=100)
    first, second, third = (queue.submit(image(name)) for name in ("first", "gone", "last"))
    assert gate.entered.acquire(timeout=30)
    assert second.cancel()
    closing = threading.Thread(target=queue.close)
    closing.start()
    gate.open.set()
    closing.join(30)
    assert (first.result(0).result, third.result(0).result) == ("first", "last")
    with pytest.raises(CancelledError):
        second.result(0)
    assert gate.calls == [["first"], ["last"]]


def test_places_are_given_back():
    queue = NetworkQueue(Gate(), batch_size=1, places=3)
    with queue.reserve(2), pytest.raises(Refusal) as refused, queue.reserve(2):
        pass
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    assert queue.taken == 0
    queue.close()


@pytest.fixture
def slow(peak_model):
    """A predictor whose network waits for an event."""
    predictor = Predictor.load(peak_model)
    gate, run = threading.Event(), predictor.backend.run

    def wait_and_run(images):
        assert gate.wait(30)
        return run(images)

    predictor.backend.run = wait_and_run
    predictor.gate = gate
    yield predictor
    gate.set()


def test_a_full_queue_and_a_slow_network_are_answered_503(start, slow, picture):
    limits = Limits(seconds=0.5, images=2, queue=2)
    with start(slow, limits=limits) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/detect", content=picture()))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [503] * 4
        told = sorted(answer.json()["error"] for answer in answers)
        assert [text[:8] for text in told] == ["no answe", "no answe", "the serv", "the serv"]
        assert all("Retry-After" in answer.headers for answer in answers)
        slow.gate.set()
        assert client.post("/detect", content=picture()).status_code == 200
        two = [("a", ("a.png", picture())), ("b", ("b.png", picture()))]
        assert client.post("/detect", files=two).status_code == 200


def test_many_clients_get_what_one_gets(start, peak_model, picture):
    sizes = [(40, 32), (32, 40), (64, 20)]
    with start(Predictor.load(peak_model, batch_size=4), limits=Limits()) as client:

        def ask(number):
            content = picture(*sizes[number % 3], 60 + number)
            with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as own:
                answers[number] = own.post("/detect?score=0", content=content).json()["images"][0]["detections"]

        answers = {}
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for number, detections in answers.items():
            width, height = sizes[number % 3]
            assert detections[0]["score"] == pytest.approx((60 + number) / 255)
            np.testing.assert_allclose(detections[0]["box"], [0, 0, width, height], rtol=1e-5)
        assert len(answers) == 24
