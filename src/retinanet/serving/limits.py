"""How much a server takes, and what it says to a request that it does not take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from retinanet.errors import UserError


class Refusal(UserError):
    """A request that cannot be answered; the message is for whoever sent it.

    Args:
        status: of the HTTP answer, 4xx or 503.
        message: one sentence or two.
        wait: seconds after which to try again, for an answer with 503.
    """

    def __init__(self, status: int, message: str, *, wait: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if wait is None else {"Retry-After": str(wait)}


@dataclass(frozen=True)
class Limits:
    """How much a server takes.

    Attributes:
        bytes: of the body of a request.
        pixels: of an image.
        seconds: from the head of a request to its answer.
        images: of a request.
        queue: images and requests that are in the server at once, being read, waiting or in the network.
    """

    bytes: int = 50_000_000
    pixels: int = 50_000_000
    seconds: float = 30.0
    images: int = 16
    queue: int = 64

    def __post_init__(self) -> None:
        names = {"bytes": "max_bytes", "pixels": "max_pixels", "images": "max_images", "queue": "queue"}
        for name, option in names.items():
            if getattr(self, name) < 1:
                raise UserError(f"{option} is at least 1, got {getattr(self, name)}")
        if not 0 < self.seconds < math.inf:
            raise UserError(f"timeout is a number of seconds above 0, got {self.seconds}")
        if self.images > self.queue:
            raise UserError(
                f"queue ({self.queue}) is smaller than max_images ({self.images}), so that a request with as many "
                "images could never be answered; choose a larger queue or fewer images"
            )

    def to_dict(self) -> dict[str, Any]:
        """What a client may know."""
        return {"bytes": self.bytes, "pixels": self.pixels, "seconds": self.seconds, "images": self.images}
