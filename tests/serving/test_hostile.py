"""Requests that nobody means well with: each is answered 4xx or 503 in a sentence, or rightly; the server lives on.

``HOSTILE=2000 pytest tests/serving/test_hostile.py`` sends more than the 300 of the suite; ``HOSTILE_SEED`` others.
"""

import json
import os
import random
import socket
import struct
import zlib

import pytest

COUNT, SEED = int(os.environ.get("HOSTILE", "300")), int(os.environ.get("HOSTILE_SEED", "0"))
BOUNDARY = "limit"


def png_header(width, height, data=b""):
    """A PNG file of an announced size, whose pixels are missing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def form(content, name=b"a.png"):
    lines = [
        b"--" + BOUNDARY.encode(),
        b'Content-Disposition: form-data; name="images"; filename="' + name + b'"',
        b"Content-Type: image/png",
        b"",
        content,
        b"--" + BOUNDARY.encode() + b"--",
        b"",
    ]
    return b"\r\n".join(lines)


def infer_body(binary):
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 32, 32]}
    sizes = {"name": "sizes", "datatype": "INT64", "shape": [1, 2], "data": [32, 32]}
    if not binary:
        return json.dumps({"inputs": [{**images, "data": [7] * 3072}, sizes]}).encode(), {}
    head = json.dumps({"inputs": [{**images, "parameters": {"binary_data_size": 3072}}, sizes]}).encode()
    return head + bytes(3072), {"Inference-Header-Content-Length": str(len(head))}


def mutate(dice, content):
    """The content with bytes changed, cut out, doubled or put in; now and then the whole of it is something else."""
    content = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5, 30))):
        at, length = dice.randrange(len(content) + 1), dice.choice((1, 2, 4, 50, 1000))
        match dice.randrange(6):
            case 0 if content:
                content[at % len(content)] = dice.randrange(256)
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length]
            case 3:
                content[at:at] = dice.randbytes(length)
            case 4:
                words = (
                    b"NaN",
                    b"-1",
                    b"1e999",
                    b"\x00",
                    b'"',
                    b"[[[[",
                    b"{",
                    b"\r\n",
                    b"9" * 30,
                    b"null",
                    b"\xff\xfe",
                )
                content[at:at] = dice.choice(words)
            case _:
                content = content[:at]
    return bytes(content)


def make_requests(dice, picture):
    """Kinds of requests, as path, body and headers; the bodies are to be mutated."""
    multipart = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    images = [
        picture(30, 20, form=form_, **options)
        for form_, options in (
            ("PNG", {}),
            ("JPEG", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("GIF", {}),
            ("BMP", {}),
            ("WEBP", {}),
            ("PPM", {}),
            ("JPEG2000", {}),
        )
    ]
    config = '<View><Image name="i" value="$p"/><RectangleLabels name="r" toName="i"/></View>'
    predict = {"tasks": [{"id": 1, "data": {"p": "/data/upload/1.png"}}], "label_config": config}
    while True:
        match dice.randrange(7):
            case 0 | 1:
                yield "/detect", dice.choice(images), {}
            case 2:
                yield "/detect", form(dice.choice(images)), multipart
            case 3:
                yield "/v2/models/peak/infer", *infer_body(binary=False)
            case 4:
                yield "/v2/models/peak/infer", *infer_body(binary=True)
            case 5:
                yield "/predict", json.dumps(predict).encode(), {}
            case _:
                query = mutate(dice, b"score=0.5&classes=spot").decode("latin-1")
                yield (
                    "/detect?"
                    + "".join(
                        f"%{ord(one):02x}" if dice.random() < 0.1 else one
                        for one in query
                        if one.isalnum() or one in "=&.,-"
                    ),
                    dice.choice(images),
                    {},
                )


def is_handled(status, body):
    """Whether an answer is one of those promised."""
    if status == 200:
        return b"NaN" not in body and b"Infinity" not in body
    told = json.loads(body)
    return (
        (400 <= status < 500 or status == 503)
        and list(told) == ["error"]
        and 5 < len(told["error"]) < 1000
        and ("Traceback" not in told["error"] and "/tmp" not in told["error"] and "site-packages" not in told["error"])
    )


def test_mutated_requests(client, picture):
    dice = random.Random(SEED)
    requests, statuses = make_requests(dice, picture), {}
    for number in range(COUNT):
        path, body, headers = next(requests)
        body = mutate(dice, body)
        answer = client.post(path, content=body, headers=headers)
        assert is_handled(answer.status_code, answer.content), (number, path, answer.status_code, answer.text[:500])
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    print(statuses)
    assert statuses[200] > COUNT / 50 and statuses[400] > COUNT / 2
    assert client.post("/detect", content=picture()).status_code == 200
    assert client.service.network.taken == 0


@pytest.mark.parametrize("side", [40_000, 2**31 - 1])
def test_pixels_that_are_only_announced(client, side):
    answer = client.post("/detect", content=png_header(side, side, zlib.compress(bytes(1000))))
    assert answer.status_code == 400
    assert is_handled(answer.status_code, answer.content)


def test_decompression_bombs(client):
    bomb = zlib.compress(bytes(100_000_000), 9)  # 97 kB
    answer = client.post("/detect", content=png_header(700, 700, bomb))
    assert is_handled(answer.status_code, answer.content)
    for headers in ({"Content-Encoding": "gzip"}, {"Content-Encoding": "br, gzip"}):
        answer = client.post("/detect", content=b"x", headers=headers)
        assert (answer.status_code, list(answer.json())) == (415, ["error"])


def exchange(port, *parts, until=b""):
    """Send raw bytes; what comes back until the connection ends, or until something."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:  # it did not want to hear more
            pass
        try:
            while not (until and until in answer) and (more := connection.recv(65536)):
                answer += more
        except OSError:
            pass
    return answer


HEAD = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def test_a_gigabyte_that_is_announced_is_refused_before_it_comes(client):
    for length in (b"1000000000", b"9" * 4000):
        answer = exchange(client.port, HEAD + b"Content-Length: " + length + b"\r\n\r\n")
        assert answer.split(b" ")[1] in (b"413", b"400")
    assert exchange(client.port, HEAD + b"Content-Length: -5\r\n\r\n").split(b" ")[1] == b"400"
    assert exchange(client.port, HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n").split(b" ")[1] == b"400"


def test_a_body_without_length_is_cut_at_the_limit(client):
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = exchange(client.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4, until=b"bytes")
    assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_body_that_does_not_come(start, peak_model):
    from retinanet.inference.predictor import Predictor
    from retinanet.serving.limits import Limits

    with start(Predictor.load(peak_model), limits=Limits(seconds=0.3)) as client:
        answer = exchange(client.port, HEAD + b"Content-Length: 100\r\n\r\n", b"x")
        assert b" 408 " in answer.split(b"\r\n")[0]
        exchange(client.port, HEAD + b"Content-Length: 100\r\n\r\n", b"x", until=b"H")
        assert client.get("/v2/health/live").status_code == 200


def test_clients_that_go_away(client, picture):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert client.post("/detect", content=picture()).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /model HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET /model HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data\r\nContent-Length: 1\r\n\r\nx",
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary="
        + b"b" * 5000
        + b"\r\nContent-Length: 1\r\n\r\nx",
        b"POST /v2/models/%2e%2e%2f/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_heads_that_are_wrong(client, head):
    answer = exchange(
        client.port,
        head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) if b"HTTP/1.1" in head else head,
        until=b"}",
    )
    assert answer[:9] == b"HTTP/1.1 " and answer[9:10] == b"4", answer[:100]
    assert b"Traceback" not in answer
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/setup", "/v2/models/peak/infer"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 90_000,
        b'{"a":' * 30_000,
        b'{"tasks": ' + b"[1," * 30_000,
        b'{"x": ' + b"9" * 150_000 + b"}",
        b'{"x": Infinity}',
        b'"\xed\xa0\x80"',
        b"\xff\xff\xff",
        b"null",
        b'{"tasks": [{}], "label_config": 3, "schema": "<"}',
        b'{"tasks": {"a": 1}, "label_config": "<View/>", "inputs": [1], "schema": "<View/>"}',
    ],
)
def test_json_that_is_wrong(client, path, body):
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    assert is_handled(answer.status_code, answer.content)
