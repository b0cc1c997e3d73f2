"""Label Studio's protocol, against its published format, and what tasks may name."""

import http.server
import threading

import pytest

from retinanet.errors import UserError
from retinanet.inference.predictor import Predictor
from retinanet.serving.label_studio import ImageSource, read_config
from retinanet.serving.limits import Refusal

CONFIG = """<View><Image name="img" value="$photo"/><RectangleLabels name="tag" toName="img">
<Label value="spot"/><Label value="other"/></RectangleLabels></View>"""


@pytest.fixture
def folder(tmp_path, picture):
    home = tmp_path / "uploads"
    (home / "1").mkdir(parents=True)
    (home / "1" / "a b.png").write_bytes(picture(80, 32))
    (tmp_path / "secret.png").write_bytes(picture())
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    return home


def test_pre_annotations(start, peak_model, folder):
    with start(Predictor.load(peak_model), source=ImageSource(folder)) as client:
        assert client.get("/health").json()["status"] == "UP"
        assert client.post("/setup", json={"project": "1.2", "schema": CONFIG}).json() == {"model_version": "peak"}
        assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200
        tasks = [
            {"id": 1, "data": {"photo": "/data/upload/1/a%20b.png"}},
            {"id": 2, "data": {"photo": "/data/local-files/?d=1/a%20b.png"}},
            {"id": 3, "data": {"photo": "/data/upload/none.png"}},
        ]
        first, second, third = client.post("/predict", json={"tasks": tasks}).json()["results"]
        (box,) = first["result"]  # the class half is not a label of the project
        assert box.pop("id") != second["result"][0].pop("id")
        assert first["result"] == second["result"]
        assert (first["model_version"], first["score"], third["result"]) == ("peak", 1.0, [])
        assert box == {
            "from_name": "tag",
            "to_name": "img",
            "type": "rectanglelabels",
            "original_width": 80,
            "original_height": 32,
            "image_rotation": 0,
            "value": {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0, "rectanglelabels": ["spot"]},
            "score": 1.0,
        }
        for task in (tasks[2], {"data": {}}, {"data": {"photo": 3}}, 5):
            answer = client.post("/predict", json={"tasks": [task], "label_config": CONFIG})
            assert answer.status_code == 400
            assert str(folder) not in answer.text
        assert client.post("/predict", json={"tasks": []}).status_code == 400


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/../secret.png",
        "/data/upload/1/../../secret.png",
        "/data/upload/%2e%2e/secret.png",
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=/etc/passwd",
        "/data/upload/link.png",
        "/data/upload/\x00",
        "/data/upload/%00",
        "/data/upload/",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1",
        "//evil.example/a.png",
        "s3://bucket/a.png",
        "../../../../../../etc/passwd",
    ],
)
def test_nothing_else_is_read(folder, address):
    with pytest.raises(Refusal) as refused:
        ImageSource(folder).read(address)
    assert refused.value.status == 400
    assert str(folder) not in str(refused.value)


@pytest.fixture
def label_studio(picture):
    """A stand-in for Label Studio: an image for who has the token, and a redirect to somewhere else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:1/secret")
                self.end_headers()
                return
            if self.path == "/garbage":
                self.wfile.write(b"no HTTP")
                return
            self.send_response(200 if self.headers["Authorization"] == "Token t" else 401)
            self.end_headers()
            self.wfile.write(picture() if self.path != "/large" else bytes(5000))

        def log_message(self, *arguments):
            pass

    asked = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_images_of_one_host(label_studio, picture):
    host = f"http://127.0.0.1:{label_studio.server_port}"
    source = ImageSource(host=f"{host}/", token="t", most=1000)
    assert source.read("/data/upload/1/x.png").content == picture()
    assert source.read(f"{host}/data/upload/1/x.png?y=1").name == "x.png"
    assert label_studio.asked == [("/data/upload/1/x.png", "Token t"), ("/data/upload/1/x.png?y=1", "Token t")]
    assert source.read("/data/upload/a bé.jpg").name == "a bé.jpg"
    assert source.read("/data/local-files/?d=c d.jpg").name == "c d.jpg"
    escaped = ["/data/upload/a%20b%C3%A9.jpg", "/data/local-files/?d=c%20d.jpg"]
    assert [path for path, _ in label_studio.asked[2:]] == escaped
    for address, expected in (
        ("/away", "answered 302"),
        ("/garbage", "cannot be reached for an image"),
        ("/large", "at most 1,000 bytes"),
        (f"http://localhost:{label_studio.server_port}/x.png", "a host that this server was not told"),
        (f"http://user@127.0.0.1:{label_studio.server_port}/x.png", "a host that this server was not told"),
    ):
        with pytest.raises(Refusal, match=expected):
            source.read(address)
    assert "/secret" not in [path for path, _ in label_studio.asked]
    with pytest.raises(Refusal, match="LABEL_STUDIO_TOKEN"):
        ImageSource(host=host).read("/x.png")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<View>",
        "<View/>",
        '<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>',
        '<View><Image name="i"/><RectangleLabels name="r" toName="i"/></View>',
        '<View><RectangleLabels name="r" toName="i"/></View>',
        "<a>" * 50_000,
        "<a/>" * 60_000,
    ],
)
def test_configurations_that_cannot_be_used(text):
    with pytest.raises(Refusal, match="labelling configuration"):
        read_config(text)


def test_options_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        ImageSource(tmp_path / "none")
    for host in ("localhost:8080", "ftp://a", "http://a/b", "http://u:p@a"):
        with pytest.raises(UserError, match="label_studio is an address"):
            ImageSource(host=host)
