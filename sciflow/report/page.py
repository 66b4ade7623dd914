"""One self-contained HTML page: text, tables and figures, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciflow.arguments import is_number
from sciflow.errors import DataError, SciflowError
from sciflow.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "Table", "write_page"]

DOTS_PER_INCH = 160  # Sharp on a phone and in print; a figure stays near 100 kB.

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --faint: #666; --line: #ddd; --band: #f6f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --paper: #16181b; --faint: #a0a0a0; --line: #3a3d41; --band: #1e2125; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 54rem; padding: 1rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; padding: .5rem; border-radius: 6px;
  background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem .3rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
th[scope=row] { font-weight: 500; color: var(--faint); }
td { overflow-wrap: anywhere; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--faint); }
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --band: #fff; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class Table:
    """A table with a heading row.

    Args:
        columns: The headings, units among them.
        rows: One sequence a row, as long as ``columns``.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise DataError(
                    f"Table: row {i} has {len(row)} cells for {len(self.columns)} columns; give one a column"
                )


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, then text, a table and figures, each where given.

    Args:
        title: The heading.
        text: Plain text; a blank line starts a new paragraph.
        table: A :class:`Table`, or a mapping for a list of keys and values.
        figures: matplotlib figures. A figure's label (``figure.get_label()``) is what a reader who cannot see it is
            told; the functions of :mod:`sciflow.report` set it.
    """

    title: str
    text: str = ""
    table: Table | Mapping[str, Any] | None = None
    figures: Sequence[Figure] = ()


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write one self-contained HTML file: figures are inside it, text is escaped, and no script runs.

    The file appears whole or not at all: it is written beside its place, then renamed.

    Args:
        path: Where the page goes; the folder must exist.
        title: Of the page.
        sections: From top to bottom.

    Returns:
        ``path``.

    Raises:
        SciflowError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> sections = [Section("Data", "3 < 5", {"rows": 1240})]
        >>> page = write_page(Path(tempfile.mkdtemp()) / "report.html", "A run", sections)
        >>> "3 &lt; 5" in page.read_text(), "1,240" in page.read_text()
        (True, True)
    """
    path = Path(path)
    body = "\n".join(_section(section) for section in sections)
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n<footer>Written by sciflow.</footer>\n</body>\n</html>\n"
    )
    try:
        with written_whole(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SciflowError(f"{path}: cannot write the page: {error.strerror or error}") from error
    return path


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()]
    if isinstance(section.table, Table):
        parts.append(_table(section.table))
    elif section.table is not None:
        parts.append(_key_values(section.table))
    parts += [_figure(figure, section.title) for figure in section.figures]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    numeric = [
        len(table.rows) > 0 and all(is_number(row[i]) or row[i] is None for row in table.rows)
        for i in range(len(table.columns))
    ]
    kinds = [' class="number"' if n else "" for n in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(str(c))}</th>' for c, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(v)}</td>" for v, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _key_values(values: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(str(key))}</th><td>{_cell(value)}</td></tr>' for key, value in values.items()
    )
    return f'<div class="wide"><table>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _cell(value: Any) -> str:
    """A value as a reader wants it: grouped digits, six figures, and a dash for nothing."""
    if value is None:
        text = "\N{EN DASH}"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, Integral):
        text = f"{int(value):,}"
    elif isinstance(value, Real):
        text = f"{float(value):.6g}"
    else:
        text = str(value)
    return html.escape(text)


def _figure(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    words = html.escape(str(figure.get_label()) or title)
    width, height = (round(float(inches) * 96) for inches in figure.get_size_inches())
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<figure><img src="data:image/png;base64,{image}" width="{width}" height="{height}" alt="{words}"></figure>'
