"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one server.

    Attributes:
        requests: by route and status.
        seconds: from the head of a request to the end of its answer, by route.
        images: by what came of them: ``detected`` or ``error``.
        network: seconds of each call of the network.
        batch: images of each call.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "retinanet_requests", "Requests that were answered.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            *("retinanet_request_seconds", "From the head of a request to the end of its answer.", ("route",)),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.images = Counter("retinanet_images", "Images by what came of them.", ("result",), registry=self._registry)
        self.network = Histogram(
            "retinanet_network_seconds", "Of each call of the network.", buckets=SECONDS, registry=self._registry
        )
        self.batch = Histogram(
            *("retinanet_batch_images", "Images of each call of the network."),
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def watch_queue(self, count: Callable[[], int]) -> None:
        """Report the images that are in the server when somebody asks."""
        gauge = Gauge(
            "retinanet_queue_images", "Images being read, waiting or in the network.", registry=self._registry
        )
        gauge.set_function(count)

    def observe_call(self, images: int, seconds: float) -> None:
        """Count a call of the network."""
        self.network.observe(seconds)
        self.batch.observe(images)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
