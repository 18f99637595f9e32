"""Base URLs: their syntax, --mirror, and what is taken from the host's apt."""

from pathlib import Path

import pytest

from release.build import mirror
from release.build.mirror import Mirrors
from release.errors import HostError, MirrorError, ToolFailed
from tests.release.build.support import program, refused, vectors

VECTORS = vectors("mirrors.json")
URIS = """\
'http://deb.example/debian/dists/trixie/InRelease' deb.example_InRelease 0
'https://cdn.example/debian/dists/sid/InRelease' x 0
'http://deb.example/debian-security/dists/trixie-security/InRelease' x 0
'cdrom://disc/debian/dists/trixie/InRelease' x 0
'https://vendor.example/apt/dists/stable/InRelease' x 0
'mirror+file:/etc/apt/mirrors/ubuntu/dists/noble/InRelease' x 0
Reading package lists...
"""


def host(programs: Path, lines: str) -> None:
    program(programs, "apt-get", f"cat <<'END'\n{lines}END")


@pytest.mark.parametrize("case", VECTORS["urls"], ids=lambda case: str(case["url"])[:40])
def test_urls(case: dict[str, str | None]) -> None:
    url, base = case["url"], case["base"]
    assert url is not None
    if base is not None:
        assert mirror.parse_url(url) == base
        return
    with refused(MirrorError, "a mirror's address can't be used", "a plain base URL") as caught:
        mirror.parse_url(url)
    assert caught[0].hint
    assert caught[0].exit_code == 3


@pytest.mark.parametrize("case", VECTORS["options"], ids=lambda case: str(case["option"])[:40])
def test_options(case: dict[str, str]) -> None:
    if "refused" in case:
        with refused(MirrorError, case["refused"]):
            mirror.parse_option(case["option"], "debian")
    else:
        got = mirror.parse_option(case["option"], "debian")
        assert got == (case["archive"], case["base"])


def test_too_long() -> None:
    with refused(MirrorError, "a mirror's address can't be used"):
        mirror.parse_url("http://mirror.example/" + "a" * mirror.URL_LIMIT)


def test_archives_of_the_host(programs: Path) -> None:
    host(programs, URIS)
    assert dict(mirror.of_host()) == {
        "debian": "http://deb.example/debian",
        "debian-security": "http://deb.example/debian-security",
    }


def test_the_host_is_only_asked(programs: Path, tmp_path: Path) -> None:
    record = tmp_path / "arguments"
    program(programs, "apt-get", f'printf "%s\\n" "$@" > {record}')
    assert mirror.of_host() == ()
    assert "--print-uris" in record.read_text().splitlines()


def test_choose_takes_the_host(programs: Path) -> None:
    host(programs, URIS)
    chosen = mirror.choose((), "debian", None)
    assert chosen.base("debian") == "http://deb.example/debian"
    assert chosen.base("debian-security") == "http://deb.example/debian-security"
    assert chosen.snapshot is None


def test_options_win(programs: Path) -> None:
    host(programs, URIS)
    chosen = mirror.choose(("https://other.example/debian/",), "debian", "http://snap.example/")
    assert chosen.base("debian") == "https://other.example/debian"
    # A mirror given for Debian speaks for its security archive as well.
    assert chosen.base("debian-security") == "https://other.example/debian-security"
    assert chosen.snapshot == "http://snap.example"
    options = ("debian=http://a.example/debian", "debian-security=http://b.example/sec")
    chosen = mirror.choose(options, "debian", None)
    assert chosen.base("debian-security") == "http://b.example/sec"


def test_default_archive_of_an_option(programs: Path) -> None:
    host(programs, URIS)
    chosen = mirror.choose(("http://ports.example/ubuntu",), "ubuntu", None)
    assert chosen.base("ubuntu") == "http://ports.example/ubuntu"
    assert chosen.base("debian") == "http://deb.example/debian"


def test_bad_option(programs: Path) -> None:
    host(programs, URIS)
    with refused(MirrorError, "a mirror's address can't be used"):
        mirror.choose(("ftp://mirror.example/debian",), "debian", None)
    with refused(MirrorError, "a mirror's address can't be used"):
        mirror.choose((), "debian", "not a url")


def test_broken_apt_settings_of_the_host(programs: Path) -> None:
    program(programs, "apt-get", "echo 'E: Malformed entry 1 in list file'; exit 100")
    with refused(ToolFailed, "or pass --mirror") as caught:
        mirror.choose((), "debian", None)
    assert "E: Malformed entry" in caught[0].diagnostics()
    # ... which is what then works.
    chosen = mirror.choose(("http://mirror.example/debian",), "debian", None)
    assert chosen.base("debian") == "http://mirror.example/debian"


def test_host_without_apt(no_programs: Path) -> None:
    with refused(HostError, "cannot start apt-get") as caught:
        mirror.of_host()
    assert caught[0].exit_code == 3
    assert "doctor" in caught[0].hint


def test_unknown_archive() -> None:
    with refused(MirrorError, "pass --mirror debian=URL", "names no mirror of its own") as caught:
        Mirrors((("ubuntu", "http://u.example/ubuntu"),)).base("debian")
    assert caught[0].got == "ubuntu"
    with refused(MirrorError, "got none"):
        Mirrors(()).base("debian")


def test_locations() -> None:
    mirrors = Mirrors((("debian", "http://m.example/debian"),), "http://snap.example")
    assert mirrors.locations("debian", "pool/a.deb", "20260102T030405Z") == [
        "http://m.example/debian/pool/a.deb",
        "http://snap.example/archive/debian/20260102T030405Z/pool/a.deb",
    ]
    assert len(Mirrors(mirrors.bases).locations("debian", "pool/a.deb", "x")) == 1
