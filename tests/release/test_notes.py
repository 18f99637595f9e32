"""Release notes: what they say, in both forms, and that no value becomes markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from attestation.measure.record import Measurements
from attestation.measure.rtmr import BootPath
from release import notes
from release.build.settings import Role
from release.keys import Key
from release.manifest import Manifest, Previous
from release.verify_files import Opened
from tests.release import small
from tests.release.build.support import deb

SIGNER = Key("acme releases", b"k" * 32)
DEMO = replace(SIGNER, demo=True)
DOCUMENTS = {str(role): json.loads(small.packages(role).dumps()) for role in Role}
VOID = {"meta"}


class Page(HTMLParser):
    """The tags, attributes and text of a page whose tags are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " if tag in {"td", "th"} else ""
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & {*self.open}:
            self.text += data


def text_of(markdown: str) -> str:
    """What a reader of the Markdown sees."""
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    return Page(rendered).text


@pytest.fixture
def before(released: Opened) -> Manifest:
    """An earlier release, with another client."""
    roles = [
        replace(
            entry,
            measurements=Measurements(
                tuple(replace(one, mr_td=b"m" * 48) for one in entry.measurements.entries)
            ),
        )
        if entry.role == "client"
        else entry
        for entry in released.manifest.roles
    ]
    return replace(released.manifest, version="1.2.2", commit="0" * 40, roles=tuple(roles))


def both(
    manifest: Manifest, previous: Manifest | None = None, signer: Key = SIGNER
) -> tuple[str, str]:
    """The text of either form."""
    markdown, page = notes.render(manifest, previous, DOCUMENTS, DOCUMENTS, signer)
    return text_of(markdown), Page(page).text


def test_published(released: Opened) -> None:
    markdown, page = notes.render(released.manifest, None, DOCUMENTS, {}, small.SIGNER)
    assert (released.folder / "notes.md").read_text() == markdown
    assert (released.folder / "notes.html").read_text() == page


def test_both_say_the_same(released: Opened, before: Manifest) -> None:
    for previous in (None, before):
        markdown, page = both(released.manifest, previous, DEMO)
        assert page.split() == markdown.split()


def test_every_register_that_a_list_needs(released: Opened) -> None:
    for text in both(released.manifest):
        for entry in released.manifest.roles:
            for one in entry.measurements.entries:
                if one.boot_path is BootPath.KERNEL:
                    assert all(value.hex() in text for value in (one.mr_td, one.rtmr1, one.rtmr2))
            assert entry.image.sha256 in text
            assert entry.firmware.sha256 in text


def test_first_release(released: Opened) -> None:
    for text in both(released.manifest):
        assert "This is the first release" in text
        assert "There is no earlier release to retire" in text
        assert "Inputs of" not in text


def test_next_release(released: Opened, before: Manifest) -> None:
    manifest = replace(released.manifest, previous=Previous("1.2.2", "a" * 64), retirement_days=45)
    for text in both(manifest, before):
        assert "1.2.2 is to be accepted for 45 days" in text
        assert re.search(r"client\s+MR_TD", text)
        assert re.search(r"server\s+nothing", text)
        assert f"git diff --stat {'0' * 40} {manifest.commit}" in text
        assert "No recorded input" not in text
        assert "--retire 1.2.2=DATE" in text


def test_what_nothing_explains(released: Opened, before: Manifest) -> None:
    same = replace(before, version=released.manifest.version, commit=released.manifest.commit)
    for text in both(released.manifest, same):
        assert "No recorded input explains why MR_TD moved" in text


def test_packages_that_could_not_be_compared(released: Opened, before: Manifest) -> None:
    forms = notes.render(released.manifest, before, DOCUMENTS, {}, SIGNER)
    for text in (text_of(forms[0]), Page(forms[1]).text):
        assert "packages could not be compared" in text


def test_signer_and_limits(released: Opened) -> None:
    for text in both(released.manifest):
        assert SIGNER.hex in text
        assert "demo" not in text
        assert "Nothing of this release was run on TDX hardware" in text
        assert "acpi unverified" in text
        assert "python -m release verify release/1.2.3 --key KEY --rebuild" in text
        assert "--node http://HOST:9464" in text
    for text in both(released.manifest, signer=DEMO):
        assert "Trust nothing signed by it" in text
        assert "acme releases (demo)" in text


def test_the_page_fetches_nothing(released: Opened, before: Manifest) -> None:
    page = notes.render(released.manifest, before, DOCUMENTS, DOCUMENTS, DEMO)[1]
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "a", "base", "form"} & {*found.tags}
    assert not {"src", "href", "style"} & {name for name, _ in found.attributes}
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_lines_of_tables_stay_together(released: Opened, before: Manifest) -> None:
    markdown = notes.render(released.manifest, before, DOCUMENTS, DOCUMENTS, DEMO)[0]
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    tables = sum(token.type == "table_open" for token in tokens)
    assert tables == len(released.manifest.roles) + 3
    assert "\n\n\n" not in markdown


HOSTILE = (
    "<script>alert(1)</script>",
    "`x` **bold** [l](http://x) ![i](http://x)",
    "a|b\n# heading\n\n    code",
    "&amp; \u202e \x1b[31m",
    "https://example.org www.example.org a@example.org",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_is_markup(released: Opened, text: str) -> None:
    # Keys and lists bound these; the notes don't rely on it.
    signer = Key(text, b"k" * 32)
    markdown, page = notes.render(released.manifest, None, DOCUMENTS, {}, signer)
    plain = notes.render(released.manifest, None, DOCUMENTS, {}, SIGNER)
    assert Page(page).tags == Page(plain[1]).tags
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    assert Page(parser.render(markdown)).tags == Page(parser.render(plain[0])).tags
    assert (page + markdown).isascii()
    assert "\x1b" not in page + markdown


@given(st.text(max_size=40))
def test_a_code_span_is_one_code_span(text: str) -> None:
    row = f"| h |\n|---|\n| {notes.code_span(text)} |\n"
    found = Page(MarkdownIt("commonmark").enable("table").render(row))
    if text.strip():
        assert found.tags.count("code") == 1
    assert found.tags.count("td") == 1
    assert not {"a", "em", "strong", "img"} & {*found.tags}


def test_a_kernel_and_a_package(released: Opened, before: Manifest) -> None:
    older = small.packages(Role.CLIENT, packages=(deb("linux-image-6.1", "6.1.9"),))
    documents = DOCUMENTS | {"client": json.loads(older.dumps())}
    markdown, page = notes.render(released.manifest, before, DOCUMENTS, documents, SIGNER)
    for text in (text_of(markdown), Page(page).text):
        assert re.search(r"kernel linux-image-6\.1\s+gone, was 6\.1\.9", text)
        assert re.search(r"package only-client\s+new, 1\.0", text)
