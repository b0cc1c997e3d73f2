"""Seconds from a drop on the page of ``serve`` to boxes on the screen, in headless Chromium.

    python benchmarks/page.py MODEL IMAGE [--rounds 5]

Each round has a server of its own, so the first figure is that of a server that has seen no image before; the second is
that of the next image. Needs playwright and Debian's chromium. Prints JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from serve import start_server

SCRIPT = """async (text) => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "image", { type: "image/jpeg" }));
    const before = document.querySelectorAll("#strip .done").length;
    const begun = performance.now();
    document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
    do await frame(); while (document.querySelectorAll("#strip .done").length === before);
    while (!document.querySelector("#list button")) await frame();
    return (performance.now() - begun) / 1000;
}"""


def time_drops(model: str, image: Path) -> list[float]:
    """Seconds of the first and the second drop on a new server."""
    process, port, _ = start_server(model)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            content = base64.b64encode(image.read_bytes()).decode()
            seconds = [page.evaluate(SCRIPT, content) for _ in range(2)]
            browser.close()
            return seconds
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [time_drops(options.model, options.image) for _ in range(options.rounds)]
    first, second = ([round(seconds[place], 3) for seconds in rounds] for place in (0, 1))
    result = {"first drop, s": first, "second drop, s": second, "load average": round(os.getloadavg()[0], 1)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
