"""A report of headings, paragraphs, tables, commands and pictures, as Markdown or as a single HTML file."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "Command", "Heading", "Paragraph", "Picture", "Table", "as_html", "as_markdown"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.prose th, .prose td { text-align: left; white-space: normal; vertical-align: top; }
tr.chosen { font-weight: bold; background: #8882; }
pre { background: #8882; padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: white; }
figcaption { font-size: .9rem; opacity: .8; }
"""


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table with cells by row and column.

    ``chosen`` names a row to highlight, and ``is_prose`` says that the cells are texts.
    """

    rows: Mapping[str, Mapping[str, str]]
    corner: str
    chosen: str | None = None
    is_prose: bool = False


@dataclass(frozen=True)
class Command:
    """A command line for a shell."""

    line: str


@dataclass(frozen=True)
class Picture:
    """A picture in a .png file, which is embedded in the HTML."""

    path: Path
    caption: str


Block = Heading | Paragraph | Table | Command | Picture


def as_markdown(title: str, blocks: Sequence[Block], folder: str | os.PathLike[str] = "") -> str:
    r"""Returns the report as Markdown. Special characters in the texts are escaped.

    Args:
        title: The title of the report.
        blocks: The parts of the report in their order.
        folder: The folder of the report. The paths of pictures are relative to it.

    Example:
        >>> print(as_markdown("Report", [Paragraph("a_b <i>")]), end="")
        # Report
        <BLANKLINE>
        a\_b \<i\>
    """
    parts = [f"# {_plain(title)}", *(_markdown(block, folder) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """Returns the report as a single HTML file that includes its pictures.

    Args:
        title: The title of the report.
        blocks: The parts of the report in their order.

    Example:
        >>> "<p>a &lt;i&gt;</p>" in as_html("Report", [Paragraph("a <i>")])
        True
    """
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *map(_html, blocks)])
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block, folder: str | os.PathLike[str]) -> str:
    match block:
        case Heading(text):
            return f"## {_plain(text)}"
        case Paragraph(text):
            return _plain(text)
        case Table(rows, corner, chosen, _):
            header = [corner, *_columns(rows)]
            lines = [[_plain(cell) for cell in header], ["---"] * len(header)]
            for name, row in rows.items():
                bold = "**" if name == chosen else ""
                lines.append([bold + _plain(name) + bold, *(_plain(row.get(column, "")) for column in header[1:])])
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Command(line):
            fence = "`" * (1 + max([2, *map(len, re.findall("`+", line))]))
            return f"{fence}bash\n{line}\n{fence}"
        case Picture(path, caption):
            place = Path(os.path.relpath(path, folder or ".")).as_posix()
            return f"![{_plain(caption)}](<{place}>)"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(rows, corner, chosen, is_prose):
            header = [corner, *_columns(rows)]
            lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
            for name, row in rows.items():
                cells = [name, *(row.get(column, "") for column in header[1:])]
                mark = ' class="chosen"' if name == chosen else ""
                lines.append(f"<tr{mark}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
            table = '<table class="prose">' if is_prose else "<table>"
            return "\n".join([table, *lines, "</table>"])
        case Command(line):
            return f"<pre><code>{html.escape(line)}</code></pre>"
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            alt = html.escape(caption)
            image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{alt}</figcaption></figure>"


def _columns(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the columns of all rows in the order of their first occurrence."""
    return list(dict.fromkeys(column for row in rows.values() for column in row))


def _plain(text: str) -> str:
    """Returns the text on a single line with Markdown characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))
