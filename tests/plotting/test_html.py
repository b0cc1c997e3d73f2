"""The page: everything inside one file, nothing that a title or a class name says can break it."""

import base64
import io
import re

from matplotlib.figure import Figure
from PIL import Image

from retinanet.plotting.html import Section, Table, write_html


def page(tmp_path, *sections, title="A <b>title</b> & more", **about):
    path = write_html(tmp_path / "new" / "report.html", title, sections, about)
    assert path == tmp_path / "new" / "report.html" and [entry.name for entry in path.parent.iterdir()] == [path.name]
    return path.read_text(encoding="utf-8")


def test_text_and_tables(tmp_path):
    table = Table(("class", "boxes", "AP"), [("пчела <x>", 12345, 0.12345), ("b", 7, float("nan"))], "a note")
    text = page(tmp_path, Section("First", "One & two.\n\n    as it is\n    here", tables=[table]), data="<d>")
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in text and "data: &lt;d&gt;" in text and "<b>" not in text
    assert "<p>One &amp; two.</p>" in text and "<pre>    as it is\n    here</pre>" in text
    assert '<td>пчела &lt;x&gt;</td><td class="number">12,345</td><td class="number">0.123</td>' in text
    assert '<td class="number">–</td>' in text and "a note" in text
    assert '<a href="#part0">First</a>' in text and '<h2 id="part0">First</h2>' in text


def test_figures_and_pictures_lie_inside(tmp_path):
    """No address leads out of the file, and what is inside can be read back."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    picture = Image.new("RGB", (40, 30), (250, 0, 0))
    text = page(tmp_path, Section("Seen", figures=[("a figure", figure)], pictures=[("a picture", picture)]))
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text) and "<script" not in text and "http" not in text
    found = re.findall(r"data:image/(png|jpeg);base64,([^\"]+)\" alt=\"([^\"]*)\"", text)
    assert [(kind, caption) for kind, _, caption in found] == [("png", "a figure"), ("jpeg", "a picture")]
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data, _ in found]
    assert images[0].size == (390, 260) and images[1].size == (40, 30)
    assert max(abs(a - b) for a, b in zip(images[1].getpixel((20, 15)), (250, 0, 0), strict=True)) < 6


def test_an_empty_table_and_an_old_page(tmp_path):
    page(tmp_path, Section("Old"))
    text = page(tmp_path, Section("New", tables=[Table(("a", "b"), [])]))
    assert "Old" not in text and "<th>a</th><th>b</th>" in text
