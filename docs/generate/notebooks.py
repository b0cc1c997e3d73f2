"""Notebooks as pages: text as it is, code and what it printed in fences, pictures as files."""

from __future__ import annotations

import base64
import json
from pathlib import Path


def render(file: Path, pictures: Path) -> str:
    """A notebook as Markdown.

    Args:
        file: the notebook.
        pictures: folder for its pictures; the page has to be written beside it.
    """
    lines: list[str] = []
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        text = "".join(cell["source"])
        lines += [text, ""] if cell["cell_type"] == "markdown" else ["```python", text, "```", ""]
        for place, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                pictures.mkdir(exist_ok=True)
                name = f"{file.stem}-{number}-{place}.png"
                (pictures / name).write_bytes(base64.b64decode("".join(data["image/png"])))
                lines += [f"![output]({pictures.name}/{name})", ""]
            else:
                lines += ["``` { .text .output }", "".join(data["text/plain"]).rstrip(), "```", ""]
    return "\n".join(lines)
