"""The page of ``serve`` in a browser: against a stand-in for the server with known answers, and against the server."""

import base64
import csv
import io
import json
import re
import shutil
import threading
from collections import deque
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from retinanet.inference.documents import Prediction, Predictions, make_coco_document, make_csv_document
from retinanet.inference.predictor import Predictor
from retinanet.plotting.marks import class_colour, ink_on
from retinanet.serving.guard import Access
from retinanet.types import Detections

CHROMIUM = shutil.which("chromium")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install retinanet[test]")
if CHROMIUM is None:
    pytest.skip("the browser chromium is not installed", allow_module_level=True)
expect = api.expect

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)
CLASSES = ["cell", "<b>odd</b>, name", "=sum"]
SIZE = (200, 120)  # of the image that the detections are in
DETECTIONS = [  # label, score, box
    (0, 0.9, (20, 30, 60, 70)),
    (1, 0.8, (150, 70, 190, 110)),
    (0, 0.4, (100, 20, 140, 60)),
    (2, 0.35, (80.123456, 70.5, 100.26, 100.77)),
    (0, 0.2, (20, 80, 50, 110)),
    (1, 0.1, (20, 84, 46, 110)),
]
MODEL = {
    **{"name": "cells", "backend": "torch, cpu", "classes": CLASSES, "score": 0.05, "max_detections": 100},
    "thresholds": {"cell": 0.3, CLASSES[1]: 0.5, "=sum": 0.25},
    "limits": {"bytes": 100_000, "pixels": 10**8, "seconds": 60, "images": 16},
}
CANDIDATES = [
    ("suppressed", 0.42, (1, 1, 30, 20), "a box <i>over</i> it is better"),
    ("not shown", 0.25, (1, 1, 30, 20), "its score is below the threshold of the model"),
]


class StandIn(ThreadingHTTPServer):
    """Answers as the server does, with canned detections."""

    def __init__(self, explain=False, token=""):
        super().__init__(("127.0.0.1", 0), Answer)
        self.explain, self.token = explain, token
        self.asked = []  # path and query of each request with a body
        self.next = deque()  # (status, JSON, headers) of the next answers to /detect, before the usual one
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, status, body, headers=()):
        page = isinstance(body, bytes)
        body = body if page else json.dumps(body).encode()
        self.send_response(status)
        fixed = {
            "Content-Type": "text/html; charset=utf-8" if page else "application/json",
            "Content-Length": len(body),
        }
        for name, value in {**fixed, "Content-Security-Policy": POLICY, **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def is_refused(self):
        if not self.server.token or self.headers["Authorization"] == f"Bearer {self.server.token}":
            return False
        self.reply(401, {"error": "a token is needed"})
        return True

    def do_GET(self):
        if self.path == "/":
            self.reply(200, files("retinanet.serving").joinpath("page.html").read_bytes())
        elif not self.is_refused():
            assert self.path == "/model"
            self.reply(200, {**MODEL, "explain": self.server.explain})

    def do_POST(self):
        form = self.rfile.read(int(self.headers["Content-Length"]))
        body = form.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]  # of the only file
        if self.is_refused():
            return None
        self.server.asked.append(self.path)
        if self.path.startswith("/explain"):
            keys = ("gate", "score", "box", "reason", "name")
            rows = [dict(zip(keys, (*candidate, "cell"), strict=True)) for candidate in CANDIDATES]
            return self.reply(200, {"candidates": rows})
        if self.server.next:
            return self.reply(*self.server.next.popleft())
        width, height = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).size
        rows = [{"box": box, "score": score, "label": k, "name": CLASSES[k]} for k, score, box in DETECTIONS]
        result = {"name": "", "width": width, "height": height, "detections": rows if (width, height) == SIZE else []}
        milliseconds = {"read": 1.25, "queue": 0.5, "network": 12.5}
        return self.reply(200, {"model": "cells", "images": [{**result, "milliseconds": milliseconds}]})


@pytest.fixture(scope="module")
def make_page():
    """Makes pages in a browser; the one without options is always the same, since new ones take their time."""
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        plain = []

        def make_page(options):
            if plain and not options:
                return plain[0]
            page = browser.new_context(**{"viewport": {"width": 900, "height": 560}, **options}).new_page()
            page.set_default_timeout(20_000)
            page.mistakes = []
            page.on("pageerror", lambda error: page.mistakes.append(str(error)))
            page.on("console", lambda message: page.mistakes.append(message.text) if message.type == "error" else None)
            if not options:
                plain.append(page)
            return page

        yield make_page
        browser.close()


@pytest.fixture
def open_page(make_page):
    """Opens the page on a stand-in, or at a URL; at the end nothing may have gone wrong in the page."""
    opened = []

    def open_page(url="", *, explain=False, token="", **options):
        page, server = make_page(options), None
        if not url:
            server = StandIn(explain, token)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        opened.append((page, server))
        page.server = server
        page.goto(url or server.url)
        return page

    yield open_page
    for page, server in opened:
        assert [mistake for mistake in page.mistakes if "Failed to load resource" not in mistake] == []
        if server:
            server.shutdown()
            server.server_close()


def make_image(size=SIZE, format="PNG", **options):
    """Grey, with a red quarter at the upper left."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def drop(page, contents, event="drop"):
    """Drop (or paste) files, given by name."""
    content = {name: base64.b64encode(content).decode() for name, content in contents.items()}
    script = """([content, event]) => {
        const transfer = new DataTransfer();
        for (const [name, text] of Object.entries(content)) {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
        }
        performance.mark("drop");
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(event === "drop" ? new DragEvent(event, { ...options, dataTransfer: transfer })
            : new ClipboardEvent(event, { ...options, clipboardData: transfer }));
    }"""
    page.evaluate(script, [content, event])


def detect(page, contents, event="drop"):
    """Drop files and wait for the answers."""
    before = page.locator("#strip .done").count()
    drop(page, contents, event)
    expect(page.locator("#strip .done")).to_have_count(before + len(contents))


def entries(page):
    return page.locator("#list button")


def pixels(page, places):
    """Colours on the stage at places of the image."""
    script = """async (places) => {
        const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        do await frame(); while (!current.bitmap);
        const { data, width } = context.getImageData(0, 0, canvas.width, canvas.height);
        return places.map(([x, y]) => {
            const [u, v] = [view.x + view.scale * x, view.y + view.scale * y];
            const start = 4 * (Math.round(devicePixelRatio * v) * width + Math.round(devicePixelRatio * u));
            return [...data.slice(start, start + 3)];
        });
    }"""
    return [tuple(colour) for colour in page.evaluate(script, places)]


def click(page, x, y):
    """Click at a place of the image."""
    left, top, scale = page.evaluate("[view.x, view.y, view.scale]")
    page.locator("#canvas").click(position={"x": left + scale * x, "y": top + scale * y})


@pytest.mark.parametrize("ratio", [1, 2])
def test_boxes_are_drawn_where_the_server_says(open_page, ratio):
    page = open_page(device_scale_factor=ratio)
    detect(page, {"a.png": make_image(), "b.png": make_image((40, 40))})
    expect(entries(page)).to_have_text(
        ["cell40 × 400.90", f"{CLASSES[1]}40 × 400.80", "cell40 × 400.40", "=sum20 × 300.35"]
    )
    expect(page.locator("#strip button").nth(1)).to_have_attribute("aria-label", "b.png, 0 shown")
    expect(page.locator("#strip button span")).to_have_text(["4", "0"])
    assert page.evaluate("canvas.width / canvas.clientWidth") == ratio
    edge = 1 / page.evaluate("view.scale")  # the line is outside of its box
    for label, score, (x1, y1, x2, y2) in DETECTIONS:
        middle = ((x1 + x2) / 2, (y1 + y2) / 2)
        colours = pixels(page, [(x1 - edge, middle[1]), (x2 + edge, middle[1]), (middle[0], y2 + edge)])
        shown = score >= MODEL["thresholds"][CLASSES[label]]
        assert [colour == class_colour(label) for colour in colours] == [shown] * 3
    assert pixels(page, [(10, 10)]) == [(255, 0, 0)]
    expect(page.locator("#time")).to_have_text(re.compile("read1.3 ms.*queue0.5 ms.*network13 ms.*transfer.*in all"))
    assert page.server.asked == ["/detect?score=0"] * 2


def test_an_image_lies_as_the_server_sees_it(open_page):
    """Turned by its EXIF entry, the red quarter of the stored pixels is at the upper right."""
    page = open_page()
    turned = Image.Exif()
    turned[0x112] = 6
    detect(page, {"a.jpg": make_image((SIZE[1], SIZE[0]), "JPEG", exif=turned, quality=95)})
    expect(entries(page)).to_have_count(4)
    assert page.evaluate("sizeOf(current)") == list(SIZE)
    corners = pixels(page, [(195, 5), (5, 5), (195, 62), (5, 115)])
    assert [colour[1] < 40 for colour in corners] == [True, False, False, False]


def test_sliders_and_check_marks_act_without_the_server(open_page):
    page = open_page()
    detect(page, {"a.png": make_image()})
    counts = page.locator("#classes .count")
    expect(counts).to_have_text(["2 of 3", "1 of 2", "1 of 1"])
    expect(page.locator("#score-text")).to_have_text("by class")
    page.get_by_label("Least score", exact=True).fill("0.1")
    expect(counts).to_have_text(["3 of 3", "2 of 2", "1 of 1"])  # a score that equals the slider is shown
    page.get_by_label("Least score of cell").fill("0.5")
    expect(counts).to_have_text(["1 of 3", "2 of 2", "1 of 1"])
    page.get_by_label("Show cell").uncheck()
    expect(entries(page)).to_have_count(3)
    expect(page.locator("#canvas")).to_have_attribute("aria-label", f"a.png: 2 {CLASSES[1]}, 1 =sum shown")
    page.get_by_label("Classes").check()  # it was neither on nor off
    page.get_by_role("button", name="Model's thresholds").click()
    expect(counts).to_have_text(["2 of 3", "1 of 2", "1 of 1"])
    slider = page.get_by_label("Least score of cell")
    slider.focus()
    slider.press("ArrowRight")
    expect(page.locator("#classes output").first).to_have_text("0.31")
    assert page.server.asked == ["/detect?score=0"]


def test_the_list_and_the_boxes_point_at_each_other(open_page):
    page = open_page()
    detect(page, {"a.png": make_image()})
    assert pixels(page, [(40, 50)]) == [(128, 128, 128)]
    entries(page).nth(0).hover()
    assert pixels(page, [(40, 50)]) != [(128, 128, 128)]
    page.locator("#model-name").hover()
    assert pixels(page, [(40, 50)]) == [(128, 128, 128)]
    click(page, 120, 40)
    expect(entries(page).nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#answer")).to_be_hidden()
    page.keyboard.press("Escape")
    entries(page).nth(0).focus()
    page.keyboard.press("ArrowDown")
    expect(entries(page).nth(1)).to_be_focused()
    expect(entries(page).nth(1)).to_have_class("lit")


def test_a_click_beside_the_boxes_asks_the_model(open_page):
    page = open_page(explain=True)
    detect(page, {"a.png": make_image()})
    click(page, 10, 10)
    entry = page.locator("#answer li")
    expect(entry).to_have_text(
        [
            "cell 0.420suppressed: a box <i>over</i> it is better",
            "cell 0.250below the slider: a detection, but its score is below 0.30",  # which the server cannot know
        ]
    )
    asked = parse_qs(urlsplit(page.server.asked[-1]).query)
    assert [float(asked[name][0]) for name in "xy"] == pytest.approx([10, 10], abs=0.6)
    edge = 1 / page.evaluate("view.scale")
    entry.first.hover()
    assert class_colour(0) in pixels(page, [(x, 20 + edge) for x in range(2, 29)])  # a dashed line
    page.keyboard.press("Escape")
    expect(page.locator("#answer")).to_be_hidden()
    page.locator("#canvas").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#answer-title")).to_have_text(re.compile("At (99|100), (59|60)"))


def test_without_the_network_a_click_says_what_is_hidden(open_page):
    page = open_page()
    detect(page, {"a.png": make_image()})
    click(page, 30, 100)
    below = [
        "cell 0.200below the slider: a detection, but its score is below 0.30",
        f"{CLASSES[1]} 0.100below the slider: a detection, but its score is below 0.50",
    ]
    expect(page.locator("#answer li")).to_have_text(below)
    expect(page.locator("#answer-text")).to_contain_text("A model folder can say more")
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Show cell").uncheck()
    click(page, 40, 50)
    off = "cell 0.900class not shown: a detection, but the check mark of its class is off"
    expect(page.locator("#answer li")).to_have_text(off)
    click(page, 190, 5)
    expect(page.locator("#answer-text")).to_contain_text("The model reports nothing here at a score of 0.05 or more.")


def test_keys_wheel_and_drag(open_page):
    page = open_page()
    detect(page, {name: make_image() for name in ("a.png", "b.png", "c.png")})
    expect(page.locator("#strip button span")).to_have_text(["4", "4", "4"])
    current = page.locator("#strip [aria-current=true]")
    for key, name in (("ArrowRight", "b.png"), ("ArrowLeft", "a.png"), ("ArrowLeft", "c.png"), ("Delete", "b.png")):
        page.keyboard.press(key)
        expect(current).to_have_attribute("title", name)
    expect(page.locator("#number")).to_have_text("2 / 2")
    whole = page.locator("#zoom").inner_text()
    page.keyboard.press("+")
    expect(page.locator("#zoom")).not_to_have_text(whole)
    page.keyboard.press("0")
    expect(page.locator("#zoom")).to_have_text(whole)

    page.mouse.move(300, 300)
    under = page.evaluate("toImage(300, 300 - canvas.getBoundingClientRect().top)")
    page.mouse.wheel(0, -500)
    expect(page.locator("#zoom")).not_to_have_text(whole)
    assert page.evaluate("toImage(300, 300 - canvas.getBoundingClientRect().top)") == pytest.approx(
        under, abs=0.2
    )  # a wheel turns at a whole pixel
    before = page.evaluate("[view.x, view.y]")
    page.mouse.down()
    page.mouse.move(270, 320, steps=3)
    page.mouse.up()
    assert np.subtract(page.evaluate("[view.x, view.y]"), before).tolist() == pytest.approx([-30, 20])
    expect(page.locator("#answer")).to_be_hidden()  # a drag is no click
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()


def test_downloads_are_what_predict_writes(open_page, tmp_path):
    page = open_page()
    names = ("a.png", '=odd, "name".png', "empty.png")
    detect(page, {name: make_image((30, 20) if name == "empty.png" else SIZE) for name in names})
    expect(page.locator("#covered")).to_have_text("3 of 3 images")
    shown = [row for row in DETECTIONS if row[1] >= MODEL["thresholds"][CLASSES[row[0]]]]
    labels, scores, boxes = zip(*shown, strict=True)
    exact = partial(torch.tensor, dtype=torch.float64)
    full = Detections(exact(boxes), exact(scores), torch.tensor(labels), tuple(CLASSES))
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), tuple(CLASSES))
    sizes = [(120, 200), (120, 200), (20, 30)]
    predictions = Predictions(map(Prediction, map(Path, names), sizes, (full, full, none)))

    texts = {}
    for button, name in (("COCO JSON", "detections.json"), ("CSV", "detections.csv")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=button).click()
        assert waiting.value.suggested_filename == name
        texts[name] = Path(waiting.value.path()).read_bytes().decode()
    assert json.loads(texts["detections.json"]) == make_coco_document(predictions, CLASSES, Path())
    assert texts["detections.csv"] == make_csv_document(predictions)
    assert len(list(csv.reader(io.StringIO(texts["detections.csv"], newline="")))) == 10


def test_errors_are_the_words_of_the_server(open_page):
    page = open_page()
    refused, busy = {"error": "a.png <b>cannot</b> be read"}, {"error": "the queue is full"}
    page.server.next.extend([(400, refused), (503, busy, {"Retry-After": 0.05})])
    drop(page, {"a.png": b"no image"})
    expect(page.locator("#notice")).to_contain_text("a.png <b>cannot</b> be read")
    drop(page, {"b.png": make_image()})
    expect(entries(page)).to_have_count(4)  # it was sent again
    expect(page.locator("#strip button").first).to_have_attribute("aria-label", "a.png, a.png <b>cannot</b> be read")
    drop(page, {"c.png": bytes(200_000)})
    expect(page.locator("#notice")).to_contain_text("c.png has 0.2 MB; this server takes images of up to 0.1 MB.")
    assert len(page.server.asked) == 3
    page.server.next.append((400, refused))
    drop(page, {"d.png": make_image()})
    page.get_by_role("button", name="Try again").click()
    expect(entries(page)).to_have_count(4)
    page.server.next.append((200, {"model": "cars", "images": []}))
    drop(page, {"f.png": make_image()})
    expect(page.locator("#notice")).to_contain_text("The server now has another model, cars: reload this page.")
    page.server.shutdown()
    page.server.server_close()
    drop(page, {"e.png": make_image()})
    expect(page.locator("#notice")).to_contain_text("The server does not answer.")


def test_a_token_is_asked_for_once(open_page):
    page = open_page(token="secret")
    field = page.get_by_label("Token", exact=True)
    expect(page.locator("#token-text")).to_have_text("a token is needed")
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_have_value("")  # it is asked again
    field.fill("secret")
    field.press("Enter")
    expect(page.locator("#model-name")).to_have_text("cells")
    detect(page, {"a.png": make_image(), "b.png": make_image()}, "paste")
    expect(page.locator("#strip button span")).to_have_text(["4", "4"])
    page.reload()
    expect(page.locator("#model-name")).to_have_text("cells")
    expect(page.locator("#token")).to_be_hidden()


def test_a_phone_shows_all_and_pinches(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, is_mobile=True)
    detect(page, {"a-rather-long-name-of-a-file.png": make_image(), "b.png": make_image()})
    expect(entries(page)).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for name in ("Add images", "Zoom in", "Fit", "Next image", "COCO JSON"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and min(box["width"], box["height"]) >= 30
    touch, scale = page.context.new_cdp_session(page), page.evaluate("view.scale")
    for kind, reach in (("touchStart", 30), ("touchMove", 60), ("touchMove", 90), ("touchEnd", None)):
        points = [] if reach is None else [{"x": 195 - reach, "y": 300, "id": 0}, {"x": 195 + reach, "y": 300, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.evaluate("view.scale") == pytest.approx(3 * scale)


CONTRASTS = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (channel) => (channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4);
    const light = (colour) => numbers(colour).slice(0, 3).map((channel) => linear(channel / 255))
        .reduce((sum, channel, i) => sum + channel * [0.2126, 0.7152, 0.0722][i], 0.05);
    const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return numbers(colour)[3] === 0 ? ground(element.parentElement) : colour;
    };
    const texts = "h1, h2, small, button:enabled, label, output, p, dt, dd, b, .count, #strip span";
    return [...document.querySelectorAll(texts)]
        .filter((element) => element.checkVisibility() && element.textContent.trim())
        .map((element) => {
            const [one, other] = [light(getComputedStyle(element).color), light(ground(element))];
            return [element.outerHTML.slice(0, 80), Math.max(one, other) / Math.min(one, other)];
        });
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input")]
    .filter((element) => !(element.ariaLabel || element.labels?.length || /\\w/.test(element.textContent)))
    .map((element) => element.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_and_controls_have_names(open_page, scheme):
    """Contrasts of at least 4.5 (WCAG AA), on the ground behind the text."""
    page = open_page(color_scheme=scheme)
    detect(page, {"a.png": make_image(), "b.png": make_image()})
    expect(page.locator("#strip button span")).to_have_text(["4", "4"])
    click(page, 30, 100)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (scheme == "dark")
    assert page.evaluate(NAMELESS) == []


def test_colours_are_those_of_pictures(open_page):
    page = open_page()
    to_hex = "#{:02x}{:02x}{:02x}".format
    expected = [[to_hex(*class_colour(k)), to_hex(*ink_on(class_colour(k)))] for k in range(25)]
    assert page.evaluate("[...Array(25).keys()].map((k) => [colourOf(k), inkOn(colourOf(k))])") == expected


def test_the_server_and_the_page_fit(open_page, start, peak_model, picture, record_testsuite_property):
    """The time from a drop to its boxes is in the report of the tests."""
    with start(Predictor.load(peak_model, mode="throughput")) as client:
        page = open_page(f"http://127.0.0.1:{client.port}/")
        expect(page.locator("#model-name")).to_have_text("peak")
        for name in ("first.png", "second.png"):  # the first also makes the runtime allocate
            page.evaluate("""() => { new MutationObserver((changes, observer) => {
                if (listed.length) { performance.mark("boxes"); observer.disconnect(); }
            }).observe($("list"), { childList: true }); }""")
            detect(page, {name: picture(300, 200)})
            expect(entries(page)).to_contain_text(["spot300 × 200", "half150 × 100"])
            passed = page.evaluate("performance.measure('', 'drop', 'boxes').duration")
            record_testsuite_property(f"milliseconds from drop to boxes, {name}", passed)
        drop(page, {"broken.png": b"no image"})
        expect(page.locator("#notice")).to_contain_text("broken.png: is not an image that can be read")


def test_a_browser_that_knows_the_token_needs_no_more(open_page, start, peak_model, picture):
    """It asks for it as for any password, and sends it with the requests of the page too."""
    with start(Predictor.load(peak_model), access=Access("secret")) as client:
        page = open_page(
            f"http://127.0.0.1:{client.port}/", http_credentials={"username": "anybody", "password": "secret"}
        )
        expect(page.locator("#model-name")).to_have_text("peak")
        detect(page, {"one.png": picture(300, 200)})
        expect(entries(page)).to_contain_text(["spot300 × 200", "half150 × 100"])
