"""One self-contained HTML page: tables, pictures and text, without scripts and without anything from elsewhere."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Picture(NamedTuple):
    """A picture with what there is to say about it."""

    title: str
    """What is shown."""
    svg: str
    """An `svg` element (`figures.to_svg`)."""
    text: str = ""
    """How to read it."""
    broad: bool = False
    """It takes a row of its own, since it has several axes."""


class Section(NamedTuple):
    """A part of a page."""

    title: str
    """Its heading."""
    parts: Sequence[str]
    """HTML, as the functions of this module make it."""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
      title: its heading.
      lead: a sentence or two below it.
      sections: those without parts are left out.

    Returns:
      HTML.
    """
    shown = [section for section in sections if section.parts]
    links = " ".join(f'<a href="#{_anchor(x.title)}">{html.escape(x.title)}</a>' for x in shown)
    body = "\n".join(
        f'<section id="{_anchor(x.title)}"><h2>{html.escape(x.title)}</h2>\n' + "\n".join(x.parts) + "\n</section>"
        for x in shown
    )
    head = f"<h1>{html.escape(title)}</h1>\n{text(lead)}\n<nav>{links}</nav>"
    return _FRAME.format(title=html.escape(title), style=_STYLE, body=f"{head}\n{body}")


def _anchor(title: str) -> str:
    return "".join(x if x.isalnum() else "-" for x in title.lower())


def text(words: str) -> str:
    """A paragraph.

    >>> text("a < b")
    '<p>a &lt; b</p>'
    """
    return f"<p>{html.escape(words)}</p>"


def code(words: str) -> str:
    """Text as it is typed."""
    return f"<pre>{html.escape(words)}</pre>"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def folded(title: str, part: str) -> str:
    """A part that is opened by a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{part}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column aligned to the left and the others to the right.

    Args:
      header: titles of the columns.
      rows: cells, as many in each row as there are titles.

    >>> table(["method", "MB"], [["uniform", "0.3"]])[:58]
    '<div class="wide"><table><thead><tr><th>method</th><th>MB<'
    """
    head = "".join(f"<th>{html.escape(x)}</th>" for x in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(values: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in values.items())
    return f'<div class="wide"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def pictures(found: Sequence[Picture]) -> str:
    """Pictures side by side where the page is wide enough."""
    figures = [
        f"<figure{' class=broad' if x.broad else ''}><figcaption><b>{html.escape(x.title)}</b></figcaption>\n{x.svg}\n"
        + (text(x.text) if x.text else "")
        + "</figure>"
        for x in found
    ]
    return '<div class="pictures">' + "\n".join(figures) + "</div>"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { max-width: 48rem; } nav a { margin-right: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .pairs td { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; max-width: 24rem; }
.pairs td { white-space: normal; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); gap: 1.5rem; }
.broad { grid-column: 1 / -1; max-width: 60rem; }
figure { margin: 0; min-width: 0; } svg { width: 100%; height: auto; } figure p { font-size: .85rem; margin: .2rem 0; }
svg text { font-family: system-ui, sans-serif !important; }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem; font-size: .85rem; white-space: pre-wrap; }
summary { cursor: pointer; } li { overflow-wrap: anywhere; }
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
