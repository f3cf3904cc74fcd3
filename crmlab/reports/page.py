"""An executed notebook becomes one HTML page that stands alone, checked before it is shown."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any

from crmlab import maps, results

TEMPLATES = Path(__file__).parent.parent / "templates"
SCRIPT = (TEMPLATES / "house.js").read_text(encoding="utf-8")
LARGEST_PAGE = 5_000_000
# A text in a script, as JSON writes it.
STRING = r'"(?:[^"\\\n]|\\.)*"'
# A variable of the environment so named holds what nobody should read.
SECRET = r"PASS|SECRET|TOKEN|CREDENTIAL|NOTIFY|(^|_|API)KEY($|_)"


def policy(scripts: Sequence[str] = ()) -> str:
    """Return what the page tells the browser: to run these scripts and the house's, no other."""
    digests = (hashlib.sha256(script.encode()).digest() for script in (SCRIPT, *scripts))
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; script-src {hashes}"
    )


class PageError(Exception):
    """The page must not be published; the message says why."""


@dataclass
class Section:
    """One part of the page: what stands under a second-level heading of the notebook."""

    title: str
    anchor: str
    blocks: list[dict[str, str]] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


def sections(notebook: Any) -> tuple[str, list[Section], dict[str, Any]]:
    """Split an executed notebook into its title, its sections and what it published.

    Text before the first `## heading` belongs to a section without a title. What comes after the
    cell that ended the page, and papermill's own words about it, are left out.
    """
    from papermill.execute import ERROR_MARKER_TAG

    title, parts, published, number = "", [Section("", "top")], {}, 0
    for cell in notebook.cells:
        if ERROR_MARKER_TAG in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "markdown":
            for piece in re.split(r"(?m)^(?=#{1,2} )", cell.source):
                heading = re.match(r"(#{1,2}) (.*)\n?", piece)
                if heading and heading[1] == "#":
                    title = heading[2].strip()
                elif heading:
                    parts.append(Section(heading[2].strip(), f"section-{len(parts)}"))
                text = piece[heading.end() :] if heading else piece
                if text.strip():
                    parts[-1].blocks.append({"kind": "markdown", "text": text})
        elif cell.cell_type == "code":
            parts[-1].code.append(cell.source)
            before = len(parts[-1].blocks)
            for output in cell.outputs:
                block = _block(output)
                if output.get("data", {}).get(results.MIME_TYPE):
                    published = output["data"][results.MIME_TYPE]
                elif block:
                    number += block["kind"] == maps.MIME_TYPE
                    parts[-1].blocks.append(_numbered(block, number))
            pictures = [one for one in parts[-1].blocks[before:] if one["kind"] == "image/svg+xml"]
            if len(pictures) > 1 and pictures == parts[-1].blocks[before:]:
                # Several pictures of one cell stand side by side where there is room.
                pictures[0]["begins"] = pictures[-1]["ends"] = "multiples"
            if any(output.get("ename") == results.PageEnds.__name__ for output in cell.outputs):
                break
    if not title:
        raise PageError("The notebook has no title: its first text cell must begin with '# '.")
    if not published:
        raise PageError("The notebook published nothing: it must end with results.publish(...).")
    return title, parts, published


def _block(output: Any) -> dict[str, str] | None:
    """Return the richest form of an output that works without a network."""
    data, notes = output.get("data", {}), output.get("metadata", {})
    if drawn := data.get(maps.MIME_TYPE):
        names = {"text": drawn["html"], "script": drawn["script"], "key": drawn["key"]}
        return {"kind": maps.MIME_TYPE, **names}
    for kind in ("image/svg+xml", "text/html", "image/png", "text/plain"):
        if kind in data:
            text = "".join(data[kind])
            return {"kind": kind, "text": text, "alt": notes.get(kind, {}).get("alt", "")}
    return None


def _numbered(block: dict[str, str], number: int) -> dict[str, str]:
    """Give a map a name of its own, for the same one may stand on a page twice."""
    if key := block.get("key"):
        return {name: text.replace(key, f"{key}_{number}") for name, text in block.items()}
    return block


def scripts(parts: Sequence[Section]) -> list[str]:
    """Return the scripts that a page of these sections needs for its maps, if it has any."""
    drawn = [block["script"] for part in parts for block in part.blocks if "script" in block]
    return [maps.code(), *drawn] if drawn else []


def export(notebook: Any, context: dict[str, Any]) -> str:
    """Return the page of an executed notebook as HTML.

    `context` is what the template shows beside the notebook: see templates/report/index.html.j2.
    """
    from nbconvert import HTMLExporter

    title, parts, _ = sections(notebook)
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    drawing = scripts(parts)
    house = {"policy": policy(drawing), "scripts": [*drawing, SCRIPT]}
    page = {**context, **house, "title": title, "sections": parts}
    page["css"] += maps.style() if drawing else ""
    html, _ = exporter.from_notebook_node(notebook, resources={"page": page})
    return str(html)


def render(template: str, **context: Any) -> str:
    """Fill one of the templates that is no notebook; everything in it is escaped."""
    import markupsafe

    house = {"policy": policy(), "script": markupsafe.Markup(SCRIPT)}
    return str(_templates().get_template(template).render(**house, **context))


@cache
def _templates() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def check(html: str, *, scripts: Collection[str] = ()) -> None:
    """Raise `PageError` unless the page can stand alone and be read aloud.

    No request to anywhere, no script but the house's own and those of its maps, an alternative text
    on every picture and map, one first-level heading and no level left out, and a size that a phone
    can take.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    problems = []
    if len(html.encode()) > LARGEST_PAGE:
        problems.append(f"it has {len(html.encode()):,} bytes, more than {LARGEST_PAGE:,}")
    for tag in soup.find_all(True):
        for name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action"):
            value = str(tag.get(name) or "").strip()
            harmless = tag.name == "a" or value.startswith(("#", "data:image/"))
            if value and not harmless:
                problems.append(f"<{tag.name} {name}='{value[:60]}'> asks for something outside it")
        if any(attribute.lower().startswith("on") for attribute in tag.attrs):
            problems.append(f"<{tag.name}> runs code on an event")
    allowed = {SCRIPT, *scripts}
    foreign = [script for script in soup.find_all("script") if script.string not in allowed]
    if foreign or soup.find(["iframe", "object", "embed"]):
        problems.append("it holds a script or a frame")
    styles = " ".join([tag.get_text() for tag in soup.find_all("style")])
    styles += " ".join(str(tag["style"]) for tag in soup.find_all(style=True))
    if re.search(r"@import|url\(\s*['\"]?(?!#|data:image/)", styles):
        problems.append("a style asks for something outside the page")
    for tag in soup.select("img, svg, .folium-map"):
        inside = tag.find_parent(attrs={"role": "img"}) or tag
        text = str(inside.get("alt") or inside.get("aria-label") or "").strip()
        if not text or text.lower().startswith("no description has been provided"):
            problems.append("a picture has no alternative text")
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    if levels.count(1) != 1 or any(b > a + 1 for a, b in zip(levels, levels[1:], strict=False)):
        problems.append(f"its headings have the levels {levels}")
    if problems:
        raise PageError("The page was not published: " + "; ".join(dict.fromkeys(problems)) + ".")


def phrases(html: str, *, longer_than: int, words: int = 6) -> set[str]:
    """Return what stands on a page in up to so many words on end, if it has more characters.

    Of its text, the alternative texts of its pictures and the words on its maps, on one line and
    between word boundaries; with all, some or none of the signs before and after it, as in (+49).
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    # What a map says stands in its script, as strings; the house's own scripts hold no data.
    own = {SCRIPT, maps.code()}
    drawing = [str(tag.string) for tag in soup.find_all("script") if tag.string not in own]
    strings = {text for script in drawing for text in re.findall(STRING, script)}
    for tag in soup.select(
        "style, script, details pre"
    ):  # the code is the notebook's, and holds no data
        tag.decompose()
    labels = [str(tag["aria-label"]) for tag in soup.select("[aria-label]")]
    texts = [
        soup.get_text("\n"),
        *labels,
        *(unescape(json.loads(text)) for text in sorted(strings)),
    ]
    found = set()
    for line in "\n".join(texts).splitlines():
        matches = list(re.finditer(r"([^\w\s]*)\w+(?=([^\w\s]*))", line))
        for number, first in enumerate(matches):
            begins = range(first.start(), first.end(1) + 1)
            for last in matches[number : number + words]:
                ends = range(last.end(), last.end(2) + 1)
                found |= {line[begin:end] for begin in begins for end in ends}
    return {phrase for phrase in found if len(phrase) > longer_than}


def without_secrets(text: str) -> str:
    """Blank the values of the environment's secrets, and the password of any URL."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) > 5 and re.search(SECRET, name, re.IGNORECASE)
    }
    # As they are and as Python, HTML and JSON write them; first those that hold others.
    forms = values | {repr(value)[1:-1] for value in values}
    forms |= {escape(form) for form in forms}
    forms |= {json.dumps(form)[1:-1] for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return re.sub(r"(://[^:/@\s\"'<>]+:)[^@\s\"'<>]+@", r"\1***@", text)


def clean(path: Path) -> None:
    """Blank the environment's secrets in a private file, if there is one."""
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if (cleaned := without_secrets(text)) != text:
            write(path, cleaned, 0o600)


def write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all, readable by whom `mode` says."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.chmod(mode)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
