"""What a request carries: images, in one of two forms, and plain JSON."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

from starlette.requests import ClientDisconnect, Request

from retinanet.errors import UserError, make_printable
from retinanet.serving.limits import Refusal

NAME_LENGTH = 200  # characters of the name of an upload that are kept


class Upload(NamedTuple):
    """An image as it was sent."""

    name: str
    content: bytes


async def read_images(request: Request, most: int) -> list[Upload]:
    """The images of a request: the files of a form, under any names, or the whole body as one image.

    Args:
        request: its body is not read yet.
        most: images of a request.

    Raises:
        Refusal: there is none, there are too many, or the form is broken.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        content = await request.body()
        if not content:
            raise Refusal(400, "the body is empty; send an image as it is, or files of a form (multipart/form-data)")
        return [Upload("image", content)]
    uploads = []
    try:
        async with request.form(max_files=most, max_fields=most) as form:
            for field, value in form.multi_items():
                if not isinstance(value, str):
                    uploads.append(Upload(_shorten(value.filename or field), await value.read()))
    except (UserError, ClientDisconnect):
        raise
    except Exception as error:  # parsers raise many things on broken forms
        reason = getattr(error, "detail", "")
        raise Refusal(400, f"the form (multipart/form-data) cannot be read{f': {reason}' if reason else ''}") from None
    if not uploads:
        raise Refusal(400, "the form has no file; send images as files: curl -F images=@image.jpg")
    return uploads


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object that is the body of a request."""
    return parse_json(await request.body())


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object; NaN and Infinity, which JSON does not have, are refused.

    Raises:
        Refusal: it is something else.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number of JSON")

    try:
        value = json.loads(content, parse_constant=refuse)
    except RecursionError:
        raise Refusal(400, "the JSON of the body is nested too deeply") from None
    except ValueError as error:
        reason = str(error) if len(str(error)) < NAME_LENGTH else "damaged"
        raise Refusal(400, f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is JSON, but not an object")
    return value


def _shorten(name: str) -> str:
    """The name of an upload, fit to be shown; browsers may send a path."""
    return make_printable(name.replace("\\", "/").rpartition("/")[2])[:NAME_LENGTH] or "image"
