"""A document as one HTML file that needs nothing else: style and images are inside, and there is no script."""

import base64
import re
from functools import singledispatch
from html import escape
from importlib.resources import files
from string import Template

from lightning_unlearn.report.document import (
    Block,
    Document,
    Folded,
    Gallery,
    Missing,
    Paragraph,
    Picture,
    Section,
    Table,
)

_FORMATS = {"svg": "svg+xml", "png": "png", "gif": "gif"}


def as_html(document: Document) -> str:
    """The file's text. All that the document says is escaped."""
    own = files(__package__)
    links = "".join(f'<li><a href="#{_anchor(s.title)}">{escape(s.title)}</a></li>' for s in document.sections)
    return Template(own.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(document.title),
        subtitle=escape(document.subtitle),
        style=own.joinpath("style.css").read_text(encoding="utf-8"),
        links=links,
        body="\n".join(_section(section) for section in document.sections),
    )


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="{_anchor(section.title)}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(f"{type(block).__name__} is no part of a document")


@_block.register
def _(block: Paragraph) -> str:
    return f"<p>{escape(block.text)}</p>"


@_block.register
def _(block: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.header)
    rows = "\n".join(_row(*row) for row in block.rows)
    caption = f'\n<p class="caption">{escape(block.caption)}</p>' if block.caption else ""
    return (
        f'<div class="table" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>{caption}"
    )


def _row(name: str, *cells: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


@_block.register
def _(block: Gallery) -> str:
    wide = ' wide" tabindex="0' if block.wide else ""
    return f'<div class="gallery{wide}">\n' + "\n".join(_picture(picture) for picture in block.pictures) + "\n</div>"


def _picture(picture: Picture) -> str:
    text, kind = escape(picture.caption), _FORMATS[picture.name.rpartition(".")[2]]
    data = base64.b64encode(picture.content).decode()
    return f'<figure><img src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


@_block.register
def _(block: Folded) -> str:
    return f"<details><summary>{escape(block.title)}</summary><pre>{escape(block.text)}</pre></details>"


@_block.register
def _(block: Missing) -> str:
    command = f'<pre class="command">{escape(block.command)}</pre>'
    return f'<div class="missing"><p>{escape(block.what)} Make it with:</p>{command}</div>'
