"""Pages of the project: every relative link leads to a file, and to the heading it names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "igniterd", "systemd", "tests")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"^[a-z]+:")


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.md"))]


def links(page: Path) -> Iterator[str]:
    """Every link of ``page`` that stays inside the project."""
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if not OUTSIDE.match(target):
            yield target


def anchors(page: Path) -> set[str]:
    """The names that headings of ``page`` get where it is shown: lower case, hyphens for spaces."""
    headings = re.findall(
        r"^#+ +(.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def fault(page: Path, link: str, root: Path = ROOT) -> str:
    """What is wrong with ``link`` of ``page``; empty where it leads somewhere below ``root``."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(root):
        return f"{link}: outside the project"
    if not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: no such heading"
    return ""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert [f for link in links(page) if (f := fault(page, link))] == []


def test_the_pages_are_found() -> None:
    found = {page.relative_to(ROOT).as_posix() for page in pages()}
    assert {"README.md", "igniterd/README.md", "systemd/README.md", "tests/README.md"} <= found


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# How `it` works\n[a](page.md) [b](gone.md) [c](#how-it-works) ![d](page.md#gone)\n"
        "[e](https://example.com/gone.md)\n```\n[f](in-code.md)\n```\n"
    )
    assert list(links(page)) == ["page.md", "gone.md", "#how-it-works", "page.md#gone"]
    assert [fault(page, link, tmp_path) for link in links(page)] == [
        "",
        "gone.md: no such file",
        "",
        "page.md#gone: no such heading",
    ]


def test_a_link_out_of_the_project_is_found() -> None:
    assert fault(ROOT / "README.md", "../elsewhere.md") == "../elsewhere.md: outside the project"
