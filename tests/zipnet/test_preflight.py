"""The preflight over file trees: with and without TDX, TPM, listeners, and over garbage."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipnet import preflight
from zipnet.preflight import Preflight, Role, event_log, look

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "build" / "listeners.json").read_text()
)
EMPTY = Preflight(
    flavor="none (not an appliance)",
    tdx_device=False,
    tsm_report=False,
    secure_boot=None,
    lockdown=None,
    registers=(),
    listeners=(),
    uptime_s=None,
    memory_mib=None,
)
PCRS = f"{preflight.PCR_FOLDER}/pcr-sha384"


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_nothing(tmp_path: Path) -> None:
    assert look(tmp_path) == EMPTY
    assert not EMPTY.tdx
    assert event_log(tmp_path) == b""


def test_no_root(tmp_path: Path) -> None:
    assert look(tmp_path / "missing") == EMPTY
    (tmp_path / "file").touch()
    assert look(tmp_path / "file") == EMPTY


@pytest.mark.parametrize(
    ("device", "report", "tdx"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_tdx(tmp_path: Path, device: bool, report: bool, tdx: bool) -> None:
    if device:
        put(tmp_path, {preflight.TDX_DEVICE: b""})
    if report:
        (tmp_path / preflight.TSM_REPORT).mkdir(parents=True)
    seen = look(tmp_path)
    assert (seen.tdx_device, seen.tsm_report, seen.tdx) == (device, report, tdx)


def test_a_report_that_is_no_folder(tmp_path: Path) -> None:
    assert not look(put(tmp_path, {preflight.TSM_REPORT: b""})).tsm_report


def test_rtmrs(tmp_path: Path) -> None:
    folder = preflight.RTMR_FOLDER
    put(
        tmp_path,
        {
            f"{folder}/mrtd:sha384": bytes(range(48)),
            f"{folder}/rtmr0": b"\1" * 48,
            f"{folder}/rtmr1:sha384": b"\2" * 48,
            f"{folder}/rtmr3:sha384": bytes(48),
            f"{folder}/mrconfigid": b"\3" * 48,
        },
    )
    assert look(tmp_path).registers == (
        ("mrtd", bytes(range(48)).hex()),
        ("rtmr0", "01" * 48),
        ("rtmr1", "02" * 48),
        ("rtmr3", "00" * 48),
    )


def test_pcrs(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            f"{PCRS}/0": b"AB" * 48 + b"\n",
            f"{PCRS}/1": b"00" * 48 + b"\n",
            f"{PCRS}/11": b"0123" * 24 + b"\n",
            f"{PCRS}/12": b"12\x1b[2J\n34",
            f"{PCRS}/16": b"ff" * 48,
            f"{preflight.PCR_FOLDER}/pcr-sha256/4": b"cd" * 32,
            f"{preflight.PCR_FOLDER}/pcr-sha1/4": b"cd" * 20,
        },
    )
    assert look(tmp_path).registers == (
        ("pcr0:sha384", "ab" * 48),
        ("pcr11:sha384", "0123" * 24),
        ("pcr12:sha384", "unreadable"),
        ("pcr4:sha256", "cd" * 32),
    )


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"\6\0\0\0\1", True),
        (b"\6\0\0\0\0", False),
        (b"\6\0\0\0\2", False),
        (b"\1", None),
        (b"", None),
        (b"\6\0\0\0\1\0", None),
    ],
)
def test_secure_boot(tmp_path: Path, raw: bytes, found: bool | None) -> None:
    assert look(put(tmp_path, {preflight.SECURE_BOOT: raw})).secure_boot is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"none [integrity] confidentiality\n", "integrity"),
        (b"[none] integrity confidentiality\n", "none"),
        (b"none integrity [confidentiality]", "confidentiality"),
        (b"", None),
        (b"none integrity", None),
        (b"]backwards[", None),
        (b"[]", None),
        (b"\xff\xfe", None),
    ],
)
def test_lockdown(tmp_path: Path, text: bytes, found: str | None) -> None:
    assert look(put(tmp_path, {preflight.LOCKDOWN: text})).lockdown == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"4.57 3.10\n", 4.57),
        (b"4 3", 4.0),
        (b"", None),
        (b"\n", None),
        (b"soon 1", None),
        (b"1.2.3 1", None),
        (b"-1 1", None),
        (b"nan 1", None),
        (b"inf 1", None),
        (b". 1", None),
        (b"\xff", None),
        (b"\xc2\xb2 1", None),
    ],
)
def test_uptime(tmp_path: Path, text: bytes, found: float | None) -> None:
    assert look(put(tmp_path, {"proc/uptime": text})).uptime_s == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"MemTotal: 2097152 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n", (1024, 2048)),
        (b"MemTotal: 2097152 kB\n", None),
        (b"MemTotal: lots kB\nMemAvailable: 1 kB\n", None),
        (b"MemTotal:\nMemAvailable:\n", None),
        (b"MemTotal: " + b"9" * 5000 + b" kB\nMemAvailable: 1 kB\n", None),
        (b"", None),
        (b"\xff\xfe\n:::\n", None),
    ],
)
def test_memory(tmp_path: Path, text: bytes, found: tuple[int, int] | None) -> None:
    assert look(put(tmp_path, {"proc/meminfo": text})).memory_mib == found


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["what"]))
def test_listeners(tmp_path: Path, case: dict[str, Any]) -> None:
    files = {
        f"proc/net/{name}": "".join(f"{line}\n" for line in lines).encode()
        for name, lines in case["files"].items()
    }
    assert look(put(tmp_path, files)).listeners == tuple(case["listeners"])


def test_flavor(tmp_path: Path) -> None:
    assert look(put(tmp_path, {preflight.FLAVOR: b"production\n"})).flavor == "production"
    assert look(put(tmp_path, {preflight.FLAVOR: b"\n"})).flavor == "none (not an appliance)"


def test_event_log(tmp_path: Path) -> None:
    assert event_log(put(tmp_path, {preflight.EVENT_LOG: b"\0\1"})) == b"\0\1"


def test_reads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MAX_READ", 10)
    assert event_log(put(tmp_path, {preflight.EVENT_LOG: b"x" * 100})) == b"x" * 10


def test_folders_in_place_of_files(tmp_path: Path) -> None:
    for name in (
        preflight.SECURE_BOOT,
        preflight.LOCKDOWN,
        preflight.FLAVOR,
        preflight.EVENT_LOG,
        f"{PCRS}/0",
        f"{preflight.RTMR_FOLDER}/rtmr0",
        "proc/uptime",
        "proc/meminfo",
        "proc/net/tcp",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert look(tmp_path) == EMPTY


SOURCES = [
    preflight.SECURE_BOOT,
    preflight.LOCKDOWN,
    preflight.FLAVOR,
    f"{PCRS}/0",
    f"{preflight.RTMR_FOLDER}/rtmr0",
    "proc/uptime",
    "proc/meminfo",
    "proc/net/tcp",
    "proc/net/udp6",
]
ALMOST = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"MemTotal: 1", b"9" * 5000, b"1e999", b"[", b"\n" * 50, b"a b c d\n" * 3]),
)


@given(files=st.dictionaries(st.sampled_from(SOURCES), ALMOST))
def test_garbage(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    seen = look(put(tmp_path_factory.mktemp("garbage"), files))
    assert not seen.tdx
    assert all(part.isprintable() for pair in seen.registers for part in pair)


def test_the_machine_itself() -> None:
    look()


def test_roles() -> None:
    assert {role: role.attested for role in Role} == {
        Role.SERVER: True,
        Role.AGGREGATOR: False,
        Role.CLIENT: True,
    }
