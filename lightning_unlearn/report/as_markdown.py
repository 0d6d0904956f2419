"""A document as Markdown; its images are files beside it."""

import re
from collections.abc import Sequence
from functools import partial, singledispatch

from lightning_unlearn.report.document import Block, Document, Folded, Gallery, Missing, Paragraph, Table

FIGURES = "figures"
"""Folder of the images, beside the file."""
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def as_markdown(document: Document) -> str:
    """The file's text. All that the document says is escaped."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    for section in document.sections:
        parts += [f"## {_plain(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


_plain = partial(_SPECIAL.sub, r"\\\1")


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(f"{type(block).__name__} is no part of a document")


@_block.register
def _(block: Paragraph) -> str:
    return _plain(block.text)


@_block.register
def _(block: Table) -> str:
    lines = [_row(block.header), _row(["---", *["---:"] * (len(block.header) - 1)], verbatim=True)]
    lines += [_row(row) for row in block.rows]
    return "\n".join(lines) + (f"\n\n{_plain(block.caption)}" if block.caption else "")


def _row(cells: Sequence[str], verbatim: bool = False) -> str:
    return "| " + " | ".join(cell if verbatim else _plain(cell) for cell in cells) + " |"


@_block.register
def _(block: Gallery) -> str:
    shown = (f"![{_plain(p.caption)}]({FIGURES}/{p.name})\n\n{_plain(p.caption)}" for p in block.pictures)
    return "\n\n".join(shown)


@_block.register
def _(block: Folded) -> str:
    return f"<details><summary>{_plain(block.title)}</summary>\n\n{_fenced(block.text)}\n\n</details>"


@_block.register
def _(block: Missing) -> str:
    return f"{_plain(block.what)} Make it with:\n\n{_fenced(block.command)}"


def _fenced(text: str) -> str:
    """A fence longer than any inside the text."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
