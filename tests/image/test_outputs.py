"""The files of an output folder, and what is and is not inside an image."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from release.build import outputs
from release.build.cpio import Entry
from release.build.settings import Role
from release.build.stage import MOCK_ONLY
from tests.image.conftest import Image

# Everything that can be started by name: no shell, no login, no package manager.
PROGRAMS = re.compile(
    r"(systemctl|journalctl|networkctl|udevadm|systemd-(sysusers|tmpfiles)|u?mount|python3(\.\d+)?"
    r"|kmod|depmod|insmod|lsmod|modinfo|modprobe|rmmod|nft)"
)


def test_names_modes_and_sums(images: dict[Role, Image]) -> None:
    for role, image in images.items():
        assert {p.name for p in image.folder.iterdir()} == outputs.names(role)
        lines = (image.folder / outputs.SUMS).read_text("ascii").splitlines()
        assert len(lines) == len(outputs.names(role)) - 1
        for line in lines:
            match = re.fullmatch(r"([0-9a-f]{64})  ([a-z0-9.-]+)", line)
            assert match, line
            content = (image.folder / match[2]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == match[1]
        for path in image.folder.iterdir():
            wanted = 0o755 if path.name == "run-qemu" else 0o644
            assert stat.S_IMODE(path.stat().st_mode) == wanted
        assert re.fullmatch(r"[0-9a-f]{96}", image.mr_td)


def test_sbom_validates(images: dict[Role, Image]) -> None:
    for image in images.values():
        text = (image.folder / "sbom.cdx.json").read_text("utf-8")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        packages = json.loads((image.folder / "packages.json").read_bytes())
        listed = {c["name"] for c in json.loads(text)["components"]}
        assert listed == {p["name"] for p in packages["packages"] + packages["wheels"]}
        assert {"systemd", "click"} <= listed


def test_no_output_tells_where_or_when_it_was_built(images: dict[Role, Image]) -> None:
    for image in images.values():
        for name in ("measurements.json", "packages.json", "sbom.cdx.json", "run-qemu"):
            text = (image.folder / name).read_text("utf-8")
            assert str(image.folder) not in text
            assert str(Path.home()) not in text
            assert "://" not in re.sub(r"http://cyclonedx\.org/schema\S+", "", text)


def test_no_shell_login_package_manager(members: dict[Role, dict[str, Entry]]) -> None:
    for found in members.values():
        programs = {
            name.rpartition("/")[2] for name in found if "/bin/" in name or "/sbin/" in name
        }
        assert {"python3", "systemctl", "mount"} <= programs
        assert not [name for name in programs if not PROGRAMS.fullmatch(name)]
        assert not [n for n in found if "getty" in n or "debug-shell" in n or "sulogin" in n]
        assert not [n for n in found if n.startswith(("var/lib/", "etc/apt/", "etc/dpkg/"))]


def test_no_privileged_files(members: dict[Role, dict[str, Entry]]) -> None:
    for found in members.values():
        for name, entry in found.items():
            assert not entry.mode & (stat.S_ISUID | stat.S_ISGID) or stat.S_ISDIR(entry.mode), name
            assert (entry.uid, entry.gid) == (0, 0), name
            # Links have no modes; what else others may write to is /tmp, under a tmpfs at run time.
            if not stat.S_ISLNK(entry.mode) and entry.mode & 0o022:
                assert (name, entry.mode) == ("tmp", stat.S_IFDIR | stat.S_ISVTX | 0o777)


def test_nobody_has_a_password(members: dict[Role, dict[str, Entry]]) -> None:
    for found in members.values():
        for line in found["etc/shadow"].data.decode().splitlines():
            assert line.split(":")[1] in {"*", "!*", "!", "!!"}, line


def test_only_this_project_and_its_wheels_apart_from_the_distribution(
    members: dict[Role, dict[str, Entry]],
) -> None:
    for role, found in members.items():
        inside = {n for n in found if "/site-packages/" in n}
        assert all(n.startswith("usr/lib/zipnet/lib/python3.") for n in inside)
        tops = {n.partition("/site-packages/")[2].split("/")[0] for n in inside}
        assert {"attestation", "zipnet", "click"} <= tops
        assert not tops & {"release", "tests", "build.py", "rich", "jinja2"}
        # Not even as byte code: `import attestation.providers.mock` has nothing to find.
        ours = [n for n in inside if "/site-packages/attestation/" in n]
        assert [n for n in ours if n.endswith("attestation/verify.py")]
        assert not [n for n in ours if "mock" in n]
        assert not sources(found) & set(MOCK_ONLY)
        assert not [n for n in found if n.startswith("usr/lib/python3/dist-packages/")]
        assert found["usr/lib/zipnet/role"].data.decode().strip() == role
        assert found["usr/lib/zipnet/flavor"].data == b"production\n"


def sources(found: dict[str, Entry]) -> set[str]:
    """Our modules in an image, as paths below the checkout; byte code counts as its source."""
    inside = (name.partition("/site-packages/")[2] for name in found)
    return {re.sub(r"__pycache__/([^/.]+)\.[^/]*\.pyc$", r"\1.py", name) for name in inside if name}


def test_mock_flavour_says_so(
    mock_server: Image, mock_members: dict[str, Entry], members: dict[Role, dict[str, Entry]]
) -> None:
    packages = json.loads((mock_server.folder / "packages.json").read_bytes())
    assert packages["flavor"] == "mock"
    assert mock_members["usr/lib/zipnet/flavor"].data == b"mock\n"
    # The flavours differ in exactly these modules.
    assert sources(mock_members) - sources(members[Role.SERVER]) == set(MOCK_ONLY)
    assert set(members[Role.SERVER]) <= set(mock_members)
