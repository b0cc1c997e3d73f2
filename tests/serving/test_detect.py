"""The routes around one model: what is found, what is said of images that cannot be used, what can be asked of it."""

import re

import httpx
import pytest

from retinanet.inference.predictor import Predictor
from retinanet.serving.guard import Access


def test_raw_bytes_of_one_image(client, picture, peak_model, tmp_path):
    answer = client.post("/detect", content=picture(brightest=204))
    assert answer.status_code == 200
    (image,) = answer.json()["images"]
    assert answer.json()["model"] == "peak"
    assert (image["name"], image["width"], image["height"]) == ("image", 40, 32)
    assert set(image["milliseconds"]) == {"read", "queue", "network"}
    (tmp_path / "same.png").write_bytes(picture(brightest=204))
    predictor = Predictor.load(peak_model)
    assert image["detections"] == predictor(tmp_path / "same.png").above(predictor.thresholds).to_dicts()
    assert [row["name"] for row in image["detections"]] == ["spot", "half"]


def test_boxes_are_in_pixels_of_the_upright_original(client, picture):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    (image,) = client.post("/detect", content=picture(60, 30, form="JPEG", exif=exif.tobytes())).json()["images"]
    assert (image["width"], image["height"]) == (30, 60)
    assert image["detections"][0]["box"] == pytest.approx([0, 0, 30, 60], abs=0.01)


def test_files_of_a_form_with_one_that_is_no_image(client, picture):
    files = [
        ("images", ("C:\\a\\x.png", picture())),
        ("other", ("y.jpg", b"text")),
        ("images", ("z.png", picture(20, 20))),
    ]
    answer = client.post("/detect", files=files)
    first, second, third = answer.json()["images"]
    assert (answer.status_code, first["name"], third["width"]) == (200, "x.png", 20)
    assert second.keys() == {"name", "error"}
    assert second["error"].startswith("y.jpg: is not an image that can be read")


def test_score_and_classes(client, picture):
    def names(**query):
        (image,) = client.post("/detect", params=query, content=picture(brightest=153)).json()["images"]
        return [row["name"] for row in image["detections"]]

    assert names() == ["spot", "half"]  # 0.6 and 0.3
    assert names(score=0.5) == ["spot"]
    assert names(classes="half") == ["half"]
    assert names(classes="half,spot", score=0.0) == ["spot", "half"]
    answer = client.post("/detect", params={"scores": 0.5}, content=picture())
    assert answer.status_code == 400
    assert answer.json()["error"] == "/detect has no parameter 'scores', did you mean 'score'?"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"score": "nan"}, "score: "),
        ({"score": "2"}, "score: "),
        ({"score": "high"}, "score: "),
        ({"classes": "spott"}, "no class 'spott', did you mean 'spot'?"),
        ({"classes": ""}, "no class ''"),
    ],
)
def test_bad_queries(client, picture, query, expected):
    answer = client.post("/detect", params=query, content=picture())
    assert answer.status_code == 400
    assert expected in answer.json()["error"]


def test_no_image_at_all(client):
    assert client.post("/detect").json()["error"].startswith("the body is empty")
    answer = client.post("/detect", files=[("a", ("a.png", b"x")), ("b", ("b.png", b"y"))])
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("none of 2 images can be read: a.png: ")
    answer = client.post("/detect", files=[("a", (f"{number}.png", b"x")) for number in range(5)])
    assert answer.status_code == 400
    assert "Maximum number of files is 4" in answer.json()["error"]


def test_an_image_with_too_many_pixels(client, picture):
    answer = client.post("/detect", content=picture(1000, 501))
    assert answer.status_code == 400
    assert "over the limit of 500,000 pixels" in answer.json()["error"]


def test_a_body_over_the_limit(client):
    answer = client.post("/detect", content=b"x" * 200_001)
    assert answer.status_code == 413
    assert "at most 200,000 bytes" in answer.json()["error"]


def test_the_model_is_described(client):
    described = client.get("/model").json()
    assert described["name"] == "peak"
    assert described["backend"] == "ONNX Runtime fp32"
    assert described["classes"] == ["spot", "half"]
    assert described["thresholds"] == {"spot": 0.2, "half": 0.3}
    assert (described["score"], described["max_detections"], described["explain"]) == (0.05, 100, False)
    assert described["limits"] == {"bytes": 200_000, "pixels": 500_000, "seconds": 10.0, "images": 4}


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "https://" not in answer.text


def test_an_unknown_route_and_the_description_of_all(client):
    answer = client.get("/detekt")
    assert (answer.status_code, answer.json()["error"][:26]) == (404, "there is no GET /detekt; /")
    assert client.get("/detect").status_code == 405
    assert "/detect" in client.get("/openapi.json").json()["paths"]
    page = client.get("/docs").text
    assert "https://" not in page  # nothing is loaded from another host
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert client.get(address).status_code == 200


def test_metrics(client, picture):
    client.post("/detect", content=picture())
    client.post("/detect", content=b"no image")
    text = client.get("/metrics").text
    for line in (
        'retinanet_requests_total{route="/detect",status="200"}',
        'retinanet_requests_total{route="/detect",status="400"}',
        'retinanet_request_seconds_bucket{le="0.1",route="/detect"}',
        "retinanet_queue_images 0.0",
        'retinanet_images_total{result="error"}',
    ):
        assert line in text


def test_a_token_is_wanted_everywhere_but_for_health(start, peak_model, picture):
    with start(Predictor.load(peak_model), access=Access("secret")) as client:
        for path in ("/", "/model", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
        answer = client.post("/detect", content=picture())
        # which lets a browser ask for the token; beside another scheme it would not
        assert (answer.status_code, answer.headers["www-authenticate"][:11]) == (401, "Basic realm")
        for wrong in ("Bearer secre", "Bearer", "secret", "Basic secret", "Basic ==", "Bearer s\xe9cret"):
            assert client.get("/model", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
        assert client.get("/model", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/model", auth=httpx.BasicAuth("anybody", "secret")).status_code == 200


def test_other_names_and_other_sites_are_refused(client, picture):
    assert client.get("/model", headers={"Host": "evil.example:80"}).status_code == 421
    assert client.get("/model", headers={"Host": f"localhost:{client.port}"}).status_code == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{client.port + 1}"):
        assert client.post("/detect", content=picture(), headers={"Origin": origin}).status_code == 403
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.post("/detect", content=picture(), headers=own).status_code == 200
