"""The Open Inference Protocol V2, with Triton's own client."""

import numpy as np
import pytest

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture
def v2(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as protocol:
        yield protocol


def batch():
    """Two images in one batch, the second smaller than it, and what the graph has to say of them."""
    images, sizes = np.zeros((2, 3, 32, 64), np.uint8), np.array([[32, 64], [20, 40]], np.int64)
    images[0, :, :5], images[1, :, 3, 3] = 255, 102
    return images, sizes


def inputs(images, sizes, *, binary):
    tensors = []
    for name, values, kind in (("images", images, "UINT8"), ("sizes", sizes, "INT64")):
        tensors.append(triton.InferInput(name, list(values.shape), kind))
        tensors[-1].set_data_from_numpy(values, binary_data=binary)
    return tensors


def test_health_and_metadata(v2, client):
    assert v2.is_server_live() and v2.is_server_ready()
    assert v2.is_model_ready("peak") and v2.is_model_ready("peak", "1")
    assert not v2.is_model_ready("other")
    assert not v2.is_model_ready("peak", "2")
    assert v2.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    model = v2.get_model_metadata("peak")
    assert model == v2.get_model_metadata("peak", "1")
    assert [(one["name"], one["datatype"], one["shape"]) for one in model["inputs"]] == [
        ("images", "UINT8", [-1, 3, -1, -1]),
        ("sizes", "INT64", [-1, 2]),
    ]
    assert [one["name"] for one in model["outputs"]] == ["boxes", "scores", "labels", "count"]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("version", ["", "1"])
def test_the_tensors_are_those_of_the_graph(v2, client, binary_in, binary_out, version):
    images, sizes = batch()
    names = ("boxes", "scores", "labels", "count")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    given = inputs(images, sizes, binary=binary_in)
    answer = v2.infer("peak", given, version, outputs=outputs, request_id="7")
    for name, expected in zip(names, client.service.predictor.backend.graph(images, sizes), strict=True):
        assert answer.as_numpy(name).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(answer.as_numpy(name), expected)
    assert answer.get_response()["id"] == "7"
    assert answer.as_numpy("count").tolist() == [2, 1]


def test_outputs_that_are_not_asked_for_are_left_out(v2):
    answer = v2.infer("peak", inputs(*batch(), binary=True), outputs=[triton.InferRequestedOutput("count")])
    assert [one["name"] for one in answer.get_response()["outputs"]] == ["count"]
    assert v2.infer("peak", inputs(*batch(), binary=True)).as_numpy("labels") is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"datatype": "FP32"}, "the datatype of images is UINT8"),
        ({"name": "picture"}, "the inputs of the model are images and sizes"),
        ({"shape": [1, 3, 32, -32]}, "the shape of images is a list of up to 4 whole numbers above 0"),
        ({"shape": [1, 3, 10**9, 10**9]}, "data of images is not a list of"),
        ({"shape": [1, 3, 2**70, 1]}, "the shape of images is a list"),
        ({"shape": [1, 3, 31, 32], "data": [0] * 2976}, "multiples of 32, at most 64"),
        ({"shape": [1, 3, 32, 96], "data": [0] * 9216}, "multiples of 32, at most 64"),
        ({"shape": [5, 3, 32, 32], "data": [0] * 15360}, "N at most 4"),
        ({"shape": [3072]}, "images has the shape (N, 3, H, W)"),
        ({"data": [256] * 3072}, "data of images is not a list"),
        ({"data": [0.5] * 3072}, "data of images is not a list"),
        ({"data": ["0"] * 3072}, "data of images is not a list"),
        ({"data": [None] * 3072}, "data of images is not a list"),
        ({"data": [[0], [0, 1]]}, "data of images is not a list"),
        ({"shape": [2**31 - 1] * 1000}, "the shape of images is a list of up to 4"),
        ({"shape": [1, 3, 32, 32] + [1] * 70}, "the shape of images is a list of up to 4"),
        ({"data": ["a" * 100_000] + ["a"] * 3071}, "data of images is not a list"),  # numpy would make them all as long
        ({"data": [[[[0] * 32] * 32] * 2 + [[[0] * 31] * 32]]}, "data of images is not a list"),
        ({"data": [True] * 3072}, "data of images is not a list"),
        ({"data": None}, "data of images is not a list"),
        ({"parameters": {"binary_data_size": 3072}}, "binary_data_size of images does not fit"),
        ({"parameters": 3}, "parameters is not an object"),
    ],
)
def test_wrong_tensors(client, change, expected):
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [0] * 3072, **change}
    sizes = {"name": "sizes", "datatype": "INT64", "shape": [1, 2], "data": [32, 32]}
    answer = client.post("/v2/models/peak/infer", json={"inputs": [images, sizes]})
    assert answer.status_code == 400
    assert expected in answer.json()["error"]


def test_an_output_comes_once(client):
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [[[[0] * 32] * 32] * 3]}
    sizes = {"name": "sizes", "datatype": "INT64", "shape": [1, 2], "data": [[32, 32]]}
    body = {"inputs": [images, sizes], "outputs": [{"name": "boxes"}]}
    assert client.post("/v2/models/peak/infer", json=body).status_code == 200
    answer = client.post("/v2/models/peak/infer", json={**body, "outputs": [{"name": "boxes"}] * 2})
    assert (answer.status_code, answer.json()["error"]) == (400, "an output is wanted twice")


@pytest.mark.parametrize("sizes", [[0, 32], [33, 32], [32, 33], [-1, 5], [32], [32, 32, 1]])
def test_wrong_sizes(client, sizes):
    images = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [0] * 3072}
    tensor = {"name": "sizes", "datatype": "INT64", "shape": [1, len(sizes)], "data": sizes}
    answer = client.post("/v2/models/peak/infer", json={"inputs": [images, tensor]})
    assert (answer.status_code, answer.json()["error"][:30]) == (400, "sizes has the shape (N, 2): he")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"inputs": [', {}),
        (b"[]", {}),
        (b'{"inputs": 3}', {}),
        (b'{"a": NaN}', {}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe{", {}),
        (b"{}", {"Inference-Header-Content-Length": "200"}),
        (b"{}", {"Inference-Header-Content-Length": "-1"}),
        (b"{}", {"Inference-Header-Content-Length": "9" * 5000}),
    ],
)
def test_bodies_that_are_no_request(client, body, headers):
    answer = client.post("/v2/models/peak/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
