"""What a report is made of, before anything is said of HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells of plain text; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An image that the document carries with it."""

    name: str
    """File name, whose ending tells the format."""
    content: bytes
    caption: str
    """Says what is seen; the alternative text, too."""


@dataclass(frozen=True)
class Gallery:
    """Pictures that stand side by side where there is room."""

    pictures: Sequence[Picture]
    wide: bool = False
    """One below the other, as wide as the page; on a narrow screen they are scrolled sideways."""


@dataclass(frozen=True)
class Folded:
    """Text as it was written, shown when asked for."""

    title: str
    text: str


@dataclass(frozen=True)
class Missing:
    """What the store does not hold, and the command that makes it."""

    what: str
    command: str


Block = Paragraph | Table | Gallery | Folded | Missing


@dataclass(frozen=True)
class Section:
    """A part of the document."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """The whole."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [picture for block in blocks if isinstance(block, Gallery) for picture in block.pictures]
