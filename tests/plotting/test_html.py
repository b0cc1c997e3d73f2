"""Tables read the same everywhere; the page has everything inside one file, and no title or name can break it."""

import base64
import io
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import rich
from matplotlib.figure import Figure
from PIL import Image

from retinanet.plotting.html import (
    KeyNumber,
    Picture,
    Point,
    Section,
    Table,
    Verdict,
    format_number,
    render_page,
    write_report,
)

NASTY = "<script>alert('1')</script> & \"x\" [red] a|b"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in its turn. ``elements`` is (tag, attributes, text) of each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def texts(self, tag, **attributes):
        return ["".join(text) for t, a, text in self.elements if t == tag and attributes.items() <= a.items()]


def page(*sections, title="A title", verdict=None, pictures=(), **about):
    return Page(render_page(title, sections, about, verdict, pictures))


def test_text_and_tables_of_a_page():
    table = Table((NASTY, "boxes", "AP"), [(f"пчела {NASTY}", 12345, 0.12345), ("b", 7, float("nan"))], NASTY)
    section = Section(NASTY, f"One {NASTY}.\n\n    as it is\n    {NASTY}", tables=[table])
    seen = page(section, title=NASTY, data=NASTY, split="test")
    assert seen.texts("title") == seen.texts("h1") == seen.texts("h2", id="part0") == [NASTY]
    assert seen.texts("a", href="#part0") == [NASTY] and seen.texts("summary") == [f" {NASTY}, boxes, AP"]
    assert seen.texts("p", **{"class": "about"}) == [f"data: {NASTY} · split: test"]
    assert f"One {NASTY}." in seen.texts("p") and seen.texts("pre") == [f"    as it is\n    {NASTY}"]
    assert seen.texts("th") == [NASTY, "boxes", "AP"] and seen.texts("th", **{"class": "number"}) == ["boxes", "AP"]
    assert seen.texts("td") == [f"пчела {NASTY}", "12,345", "0.123", "b", "7", "-"]
    assert seen.texts("td", **{"class": "number"}) == ["12,345", "0.123", "7", "-"]
    assert seen.texts("p", **{"class": "note"}) == [NASTY]
    assert not seen.texts("script")


def test_figures_and_pictures_lie_inside():
    """No address leads out of the file, and what is inside can be read back."""
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    picture = Image.new("RGB", (40, 30), (250, 0, 0))
    seen = page(Section("Seen", figures=[(NASTY, figure)], pictures=[("a picture", picture)]))
    addresses = [a[key] for _, a, _ in seen.elements for key in ("src", "href") if key in a]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not {tag for tag, _, _ in seen.elements} & {"script", "link", "iframe", "object"}
    assert "url(" not in seen.texts("style")[0] and "@import" not in seen.texts("style")[0]
    inside = [a for tag, a, _ in seen.elements if tag == "img"]
    assert [image["alt"] for image in inside] == [NASTY, "a picture"]
    assert seen.texts("summary") == [f" {NASTY}", " a picture"]
    assert seen.texts("span", **{"class": "kind"}) == ["Figure", "Picture"]
    assert [image["src"].split(";")[0] for image in inside] == ["data:image/png", "data:image/jpeg"]
    images = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in inside]
    assert images[0].size == (390, 260) and images[1].size == (40, 30)
    assert max(abs(a - b) for a, b in zip(images[1].getpixel((20, 15)), (250, 0, 0), strict=True)) < 6


def test_the_verdict_and_the_pictures_come_first():
    verdict = Verdict(
        "fair",
        NASTY,
        [Point(f"Fix {NASTY}", f"One {NASTY}.", f"retinanet {NASTY}")],
        [KeyNumber(f"boxes {NASTY}", f"5 {NASTY}", f"note {NASTY}", "bad")],
        [(f"epochs {NASTY}", NASTY, f"why {NASTY}")],
    )
    picture = Picture(f"title {NASTY}", f"file {NASTY}", Image.new("RGB", (40, 30)), columns=4)
    part = Section(
        "Part", f"In words {NASTY}.", [Table(("a",), [(1,)], point=f"point {NASTY}")], point=f"It says {NASTY}."
    )
    seen = page(part, verdict=verdict, pictures=[picture])
    assert seen.texts("p", **{"class": "headline"}) == [NASTY]
    assert seen.texts("dt") == [f"Fix {NASTY}"] and seen.texts("code") == [f"retinanet {NASTY}"]
    assert seen.texts("b")[:1] == [f"5 {NASTY}"] and seen.texts("span", **{"class": "more"}) == [f"note {NASTY}"]
    assert seen.texts("td") == [f"epochs {NASTY}", NASTY, f"why {NASTY}", "1"]
    assert seen.texts("b")[1:] == [f"title {NASTY}"]
    assert [a["alt"] for tag, a, _ in seen.elements if tag == "img"] == [f"title {NASTY}: file {NASTY}"]
    assert seen.texts("summary") == [" In words, and how to read the numbers", f" point {NASTY}"]
    assert f"It says {NASTY}." in seen.texts("p") and f"In words {NASTY}." in seen.texts("p")
    order = [tag for tag, a, _ in seen.elements if tag in ("h1", "dl", "ul", "figure", "nav", "details")]
    assert order == ["h1", "dl", "ul", "figure", "nav", "details", "details"] and not seen.texts("script")
    assert verdict.summary() == f"verdict: {NASTY}\nFix {NASTY}: One {NASTY}. retinanet {NASTY}"


def test_an_empty_table():
    seen = page(Section("New", tables=[Table(("a", "b"), [])]))
    assert seen.texts("h2") == ["New"] and seen.texts("th") == ["a", "b"] and seen.texts("td") == []


def test_an_old_report_and_a_name_that_utf_8_cannot_hold(tmp_path):
    """The page and the numbers replace what was there, and nothing else is left in the folder."""
    folder, verdict = tmp_path / "new", Verdict("plain", "So it is.")
    for title in ("old", "bad \udcff name"):
        write_report(folder, ("a.html", "a.json"), title, [Section("Part")], {"data": "d"}, {"boxes": 2}, verdict)
    assert Page((folder / "a.html").read_text(encoding="utf-8")).texts("h1") == ["bad ? name"]
    numbers = json.loads((folder / "a.json").read_text())
    assert numbers == {"about": {"data": "d"}, "verdict": verdict.to_dict(), "boxes": 2}
    assert sorted(path.name for path in folder.iterdir()) == ["a.html", "a.json"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (0.1236, "0.124"), (1234567, "1,234,567"), (True, "True"), ("0.5", "0.5")],
)
def test_numbers(value, text):
    assert format_number(value) == text


TABLE = Table(
    ("name", "boxes", "AP", "ms"), [(NASTY, 12345, 0.5, None), ("b", 2, None, 1.26)], "A note.", digits=(0, 0, 4, 1)
)


def test_a_terminal_shows_the_same(capsys):
    lines = str(TABLE).splitlines()
    assert [line.split() for line in lines if line and "─" not in line] == [
        ["name", "boxes", "AP", "ms"],
        [*NASTY.split(), "12,345", "0.5000", "-"],
        ["b", "2", "-", "1.3"],
        ["A", "note."],
    ]
    assert len({len(line) for line in lines if line.endswith((" ms", " -", " 1.3"))}) == 1  # numbers end alike
    rich.print(TABLE)
    assert "12,345" in capsys.readouterr().out


def test_markdown_shows_the_same():
    assert TABLE.to_markdown().splitlines() == [
        "| name | boxes | AP | ms |",
        "| --- | ---: | ---: | ---: |",
        "| " + NASTY.replace("|", "\\|") + " | 12,345 | 0.5000 | - |",
        "| b | 2 | - | 1.3 |",
        "",
        "A note.",
    ]


def test_tables_need_no_heavy_library():
    """They show the evaluation of an exported model, where torch may not be installed."""
    code = "import sys; from retinanet.plotting.html import Table; str(Table(('a',), [(1,)])); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "matplotlib", "PIL"} & set(loaded)
