"""The last step of a verification: quotes and nodes, of a release and of something else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.bundle import Bundle
from attestation.bundle import Role as TicketRole
from attestation.errors import (
    EvidenceUnavailable,
    FileUnreadable,
    QuoteRejected,
    TicketFormatError,
    TicketRejected,
)
from attestation.evidence import evidence_ticket
from attestation.measure.record import Measurement
from attestation.providers.mock import MockTee
from release.build.settings import Role
from release.errors import ReleaseRejected
from release.manifest import Manifest
from release.verify import Request, State, verify
from release.verify_files import Opened
from release.verify_quote import Anchor, check_node, check_quote
from tests.release import small
from tests.release.small import refused

TEE = MockTee(b"release")
NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x09" * 32)
CONFIG = b"\x33" * 32


def body(role: Role, index: int = 0, **changes: Any) -> dict[str, Any]:
    """The report of a TD that runs the image, on the host of this entry."""
    entry: Measurement = small.measurements(role).entries[index]
    registers = {name: getattr(entry, name) for name in ("mr_td", "rtmr1", "rtmr2")}
    return {**registers, "mr_config_id": CONFIG + bytes(16), **changes}


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    (tmp_path / "root.der").write_bytes(TEE.root_der)
    (tmp_path / "collateral.json").write_bytes(TEE.collateral().dumps())
    return Anchor(tmp_path / "collateral.json", tmp_path / "root.der")


def quoted(tmp_path: Path, report: dict[str, Any]) -> Path:
    path = tmp_path / "quote.bin"
    path.write_bytes(TEE.quote(bytes(64), body=report))
    return path


@pytest.mark.parametrize("index", range(4))
def test_a_quote_of_the_release(
    released: Opened, anchor: Anchor, tmp_path: Path, index: int
) -> None:
    entry = small.measurements(Role.CLIENT).entries[index]
    told = check_quote(quoted(tmp_path, body(Role.CLIENT, index)), released.manifest, anchor, NOW)
    assert told.startswith(f"MOCK, not hardware: client on a host of {entry.host_profile}, boot")
    assert entry.boot_path in told
    assert CONFIG.hex() in told
    assert "ACPI unverified" in told


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mr_td": b"\1" * 48}, "measurement"),
        ({"rtmr1": b"\1" * 48}, "measurement"),
        ({"rtmr2": b"\1" * 48}, "measurement"),
        ({"rtmr3": b"\1" * 48}, "rtmr3"),
        ({"mr_owner": b"\1" * 48}, "mr-owner"),
        ({"mr_owner_config": b"\1" * 48}, "mr-owner"),
        ({"td_attributes": 1}, "debug-td"),
    ],
)
def test_a_quote_of_something_else(
    released: Opened, anchor: Anchor, tmp_path: Path, changes: dict[str, Any], rule: str
) -> None:
    path = quoted(tmp_path, body(Role.CLIENT, **changes))
    with refused(QuoteRejected, rule):
        check_quote(path, released.manifest, anchor, NOW)


def test_a_quote_of_another_role(released: Opened, anchor: Anchor, tmp_path: Path) -> None:
    only = replace(released.manifest, roles=(released.manifest.role("server"),))
    with refused(QuoteRejected, "measurement"):
        check_quote(quoted(tmp_path, body(Role.CLIENT)), only, anchor, NOW)


def test_intel_s_root_takes_no_mock_quote(released: Opened, anchor: Anchor, tmp_path: Path) -> None:
    path = quoted(tmp_path, body(Role.CLIENT))
    with pytest.raises(QuoteRejected):
        check_quote(path, released.manifest, replace(anchor, mock_root=None), NOW)


def test_an_old_platform(released: Opened, anchor: Anchor, tmp_path: Path) -> None:
    assert anchor.collateral is not None
    anchor.collateral.write_bytes(TEE.collateral(platform_status="OutOfDate").dumps())
    path = quoted(tmp_path, body(Role.CLIENT))
    with refused(QuoteRejected, "tcb-status", "OutOfDate"):
        check_quote(path, released.manifest, anchor, NOW)
    patient = replace(anchor, tcb=("UpToDate", "OutOfDate"))
    assert "TCB OutOfDate" in check_quote(path, released.manifest, patient, NOW)


@contextmanager
def node(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A node on this host that answers challenges; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answer(bytes.fromhex(self.path.rpartition("/")[2]))
            self.send_response(200 if content else 503)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown(
    challenge: bytes, role: TicketRole = TicketRole.CLIENT, image: Role = Role.CLIENT, **more: Any
) -> bytes:
    ticket = evidence_ticket(
        role=role,
        deployment_id=b"\x01" * 32,
        instance_id=b"\x02" * 32,
        peer_id=KEY.public_key().public_bytes_raw(),
        dh_pub=b"\x04" * 32,
        config_digest=CONFIG,
        boot_epoch=7,
        challenge=challenge,
        now=int(time.time()),
    )
    return Bundle.sign(
        ticket, TEE.quote(ticket.report_data(), body=body(image, **more)), KEY
    ).encode()


def ask(answer: Callable[[bytes], bytes], manifest: Manifest, anchor: Anchor) -> str:
    with node(answer) as url:
        return check_node(url, manifest, anchor, datetime.now(UTC))


def test_a_node_of_the_release(released: Opened, anchor: Anchor) -> None:
    told = ask(shown, released.manifest, anchor)
    assert told.startswith("MOCK, not hardware: client on a host of upstream, boot kernel")
    assert f"deployment {'01' * 32}" in told


@pytest.mark.parametrize(
    ("answer", "kind", "rule"),
    [
        (lambda _: shown(bytes(32)), TicketRejected, "challenge"),
        (lambda c: shown(c, mr_td=b"\1" * 48), TicketRejected, "mrtd"),
        (lambda c: shown(c, rtmr2=b"\1" * 48), TicketRejected, "rtmr2"),
        (lambda c: shown(c, image=Role.SERVER), TicketRejected, "mrtd"),
        (lambda c: shown(c, mr_config_id=bytes(48)), TicketRejected, "mr-config-id"),
        (lambda c: shown(c, role=TicketRole.SEALER), ReleaseRejected, "release.role"),
        (lambda _: b"", EvidenceUnavailable, "evidence.status"),
        (lambda _: b"junk", TicketFormatError, "bundle.size"),
    ],
)
def test_another_node(
    released: Opened, anchor: Anchor, answer: Callable[[bytes], bytes], kind: Any, rule: str
) -> None:
    with refused(kind, rule):
        ask(answer, released.manifest, anchor)


def test_an_outcome(released: Opened, anchor: Anchor, tmp_path: Path) -> None:
    folder, key = released.folder, small.SIGNER.hex
    good = Request(folder, key, NOW, quote=quoted(tmp_path, body(Role.SERVER)), anchor=anchor)
    last = list(verify(good, print))[-1]
    assert (last.step, last.state, last.asked) == ("quote", State.GOOD, True)
    none = replace(good, quote=tmp_path / "nowhere")
    last = list(verify(none, print))[-1]
    assert (last.state, last.rule) == (State.FAILED, "file.read")
    with node(lambda c: shown(c, rtmr1=b"\1" * 48)) as url:
        now = datetime.now(UTC)
        last = list(verify(replace(good, quote=None, node=url, now=now), print))[-1]
    assert (last.state, last.rule) == (State.REFUSED, "rtmr1")
    with refused(FileUnreadable, "file.read"):
        check_quote(tmp_path / "nowhere", released.manifest, anchor, NOW)
