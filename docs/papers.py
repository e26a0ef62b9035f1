"""Documents that are printed: Markdown through pandoc and typst to PDF, `make docs`.

A document of `docs/` is printed if it begins with front matter; `pages` in it is the number of pages that it must have,
`columns`, `fontsize`, `bibliography` and the rest go to `paper.typ`. The same sources give the same bytes. Other
versions of pandoc or typst may give others, so a PDF names the digest of its sources, by which it is known to be fresh.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from pathlib import Path
from typing import Literal

import pypandoc
import typst
from pypdf import PdfReader

DOCS = Path(__file__).parent
TEMPLATE = DOCS / "paper.typ"
FILTER = DOCS / "paper.lua"
PDF_STANDARD: Literal["a-2b"] = "a-2b"
"""Typst refuses characters that no font has only where a standard forbids them."""
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
OLD_SYMBOLS = {"dot.circle": "dot.o", "times.circle": "times.o"}
"""Names that pandoc writes and typst has given up."""


class PaperError(Exception):
    """A document cannot be printed as it should be; the message says which and why."""


def papers(folder: Path = DOCS) -> list[Path]:
    """The documents that are printed."""
    return [path for path in sorted(folder.glob("*.md")) if FRONT_MATTER.match(path.read_text(encoding="utf-8"))]


def pages_expected(paper: Path) -> int | None:
    front = FRONT_MATTER.match(paper.read_text(encoding="utf-8"))
    found = re.search(r"^pages: (\d+)$", front[1], re.MULTILINE) if front else None
    return int(found[1]) if found else None


def sources_digest(paper: Path) -> str:
    """Of all that a PDF is made of: the document, what it shows and cites, and how it is set."""
    text = paper.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:!\[.*\]\(|bibliography: )([^)\n]+)", text, re.MULTILINE)
    digest = hashlib.sha256()
    for path in (paper, TEMPLATE, FILTER, *(paper.parent / name for name in shown)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_fresh(paper: Path) -> bool:
    """Whether the PDF beside a document was made of what is there now."""
    pdf = paper.with_suffix(".pdf")
    return pdf.exists() and keywords(pdf) == sources_digest(paper)


def keywords(pdf: Path) -> str:
    metadata = PdfReader(pdf).metadata
    return str(metadata["/Keywords"]) if metadata and "/Keywords" in metadata else ""


def typst_source(paper: Path) -> str:
    """The document in typst's language."""
    text: str = pypandoc.convert_file(
        paper,
        "typst",
        format="markdown",
        extra_args=[
            f"--template={TEMPLATE}",
            f"--lua-filter={FILTER}",
            f"--variable=sources:{sources_digest(paper)}",
            "--columns=1000",  # wider than any row, so that columns are as wide as what is in them
        ],
    )
    for old, new in OLD_SYMBOLS.items():
        text = text.replace(old, new)
    return text


def build(paper: Path, pdf: Path) -> None:
    """Write a document's PDF, if it is right. Raises PaperError where typst complains, or pages are too many or few."""
    with tempfile.NamedTemporaryFile("w", dir=paper.parent, prefix=".", suffix=".typ", encoding="utf-8") as source:
        source.write(typst_source(paper))
        source.flush()
        try:
            content, warnings = typst.compile_with_warnings(
                source.name, ignore_system_fonts=True, pdf_standards=[PDF_STANDARD]
            )
        except typst.TypstError as error:
            raise PaperError(f"`{paper.name}`: {error.message}") from error
    if warnings:
        raise PaperError(f"`{paper.name}`: {'; '.join(warning.message for warning in warnings)}")
    asked, found = pages_expected(paper), len(PdfReader(io.BytesIO(content)).pages)
    if asked not in (None, found):
        raise PaperError(f"`{paper.name}` has {found} pages, it must have {asked} (`pages` in its front matter)")
    pdf.write_bytes(content)
