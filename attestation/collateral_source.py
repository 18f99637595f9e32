"""Where collateral comes from: Intel's service, or a caching one (PCCS) with the same interface.

Interface: Intel, "SGX and TDX Provisioning Certification Service" API version 4. Four requests:

    GET {base}/sgx/certification/v4/pckcrl?ca=platform&encoding=der     DER
    GET {base}/tdx/certification/v4/tcb?fmspc=...&update=standard       {"tcbInfo", "signature"}
    GET {base}/tdx/certification/v4/qe/identity?update=standard         {"enclaveIdentity", ...}
    GET {base}/sgx/certification/v4/rootcacrl                           PCCS only: DER as hex

Intel serves the last as DER where its root certificate says. The chain of each issuer is a header,
URL-encoded PEM. What is fetched is as trustworthy as the network: its signatures are checked by
`attestation.collateral`.
"""

import asyncio
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Literal, NoReturn, Protocol
from urllib.parse import unquote

import httpx

from attestation.collateral_cache import Ca, Platform
from attestation.collateral_format import SIGNATURE_BYTES, Collateral
from attestation.errors import (
    CollateralFormatError,
    CollateralRejected,
    CollateralUnavailable,
    PolicyError,
)

__all__ = ["INTEL", "Ca", "Pcs", "Platform", "Source", "SourceBusy", "signed_member"]

INTEL = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
MAX_ANSWER = 1 << 20
PATIENCE_SECONDS = 30.0
# Collateral is refreshed from three days before it expires: that leaves attempts.
MAX_RETRY_AFTER_SECONDS = 86_400.0

_PCK_CRL = "/sgx/certification/v4/pckcrl"
_TCB_INFO = "/tdx/certification/v4/tcb"
_QE_IDENTITY = "/tdx/certification/v4/qe/identity"
_ROOT_CRL = "/sgx/certification/v4/rootcacrl"

_HEX = re.compile(rb"\s*((?:[0-9a-fA-F]{2})+)\s*")
_SIGNATURE = re.compile(f'"([0-9a-fA-F]{{{2 * SIGNATURE_BYTES}}})"')
_MARKS = re.compile(r"[ \t\r\n]*([{}:,])[ \t\r\n]*")
_JSON = json.JSONDecoder()


class Source(Protocol):
    """Where collateral can be fetched."""

    async def fetch(self, platform: Platform) -> Collateral:
        """Collateral for a platform, not yet known to be genuine or current.

        Raises CollateralUnavailable, CollateralRejected, CollateralFormatError.
        """
        ...


class SourceBusy(CollateralUnavailable):
    """The service asks not to be asked again for `retry_after` seconds (0: it names no time)."""

    def __init__(self, path: str, status: int, retry_after: float) -> None:
        super().__init__(
            f"collateral service has no time for GET {path}",
            expected="status 200",
            got=f"{status}",
            rule="source.busy",
            hint="try again later; a caching service (PCCS) of your own is not limited",
        )
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Pcs:
    """Intel's service, or a PCCS at `base`: `https://`, or `http://` on this machine.

    `update` is how soon a new evaluation of platforms counts: `early` at once, `standard` when
    owners had time to update. An answer may take `patience` seconds. `transport` is for tests.

    Raises PolicyError for a base of another form: rule `source.url`, `source.plain-http`.
    """

    base: str = INTEL
    update: Literal["standard", "early"] = "standard"
    patience: float = PATIENCE_SECONDS
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url = _parsed(self.base)
        if url is None or url.scheme not in {"http", "https"} or not url.host:
            raise PolicyError(
                "the collateral service is no URL",
                expected="https://host or https://host:port",
                got=ascii(self.base[:80]),
                rule="source.url",
                hint=f"Intel's is {INTEL}",
            )
        if url.userinfo or url.query or url.fragment:
            # Not shown: it may be a password.
            raise PolicyError(
                "the URL of the collateral service holds more than a place",
                expected="https://host or https://host:port",
                rule="source.url-parts",
                hint="leave out user, password, query and fragment",
            )
        if url.scheme == "http" and not _is_loopback(url.host):
            raise PolicyError(
                "the collateral service is asked in the clear",
                expected="https://, or a host on this machine",
                got=f"http://{url.host}",
                rule="source.plain-http",
                hint="give the service a certificate",
            )

    async def fetch(self, platform: Platform) -> Collateral:
        """As `Source.fetch`: four requests, one after the other."""
        base = self.base.rstrip("/")
        async with httpx.AsyncClient(
            transport=self.transport,
            # Neither a proxy nor other certificates because of the environment.
            trust_env=False,
            follow_redirects=False,
            timeout=self.patience,
            headers={"accept-encoding": "identity"},
        ) as client:
            crl = await self._get(client, f"{base}{_PCK_CRL}?ca={platform.ca}&encoding=der")
            fmspc = platform.fmspc.hex().upper()
            info = await self._get(client, f"{base}{_TCB_INFO}?fmspc={fmspc}&update={self.update}")
            identity = await self._get(client, f"{base}{_QE_IDENTITY}?update={self.update}")
            if httpx.URL(base).host == httpx.URL(INTEL).host:
                root_crl = (await self._get(client, INTEL_ROOT_CRL)).body
            else:
                root_crl = _unhex((await self._get(client, f"{base}{_ROOT_CRL}")).body)
        tcb_info, tcb_info_signature = signed_member(info.body, "tcbInfo")
        qe_identity, qe_identity_signature = signed_member(identity.body, "enclaveIdentity")
        collateral = Collateral(
            pck_crl_issuer_chain=crl.chain("SGX-PCK-CRL-Issuer-Chain"),
            root_ca_crl=root_crl,
            pck_crl=crl.body,
            tcb_info_issuer_chain=info.chain("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_info_signature,
            qe_identity_issuer_chain=identity.chain("SGX-Enclave-Identity-Issuer-Chain"),
            qe_identity=qe_identity,
            qe_identity_signature=qe_identity_signature,
        )
        platform.check(collateral)
        return collateral

    async def _get(self, client: httpx.AsyncClient, url: str) -> "_Answer":
        path = httpx.URL(url).path
        try:
            # httpx bounds each step only; a service that sends a byte a minute never ends.
            async with asyncio.timeout(self.patience), client.stream("GET", url) as response:
                _check_status(response, path)
                return _Answer(path, response.headers, await _body(response, path))
        except (TimeoutError, httpx.TimeoutException) as error:
            raise CollateralUnavailable(
                f"collateral service did not answer GET {path}",
                expected=f"an answer within {self.patience:g} seconds",
                got="none",
                rule="source.timeout",
                hint="check that the service runs, and the network between",
            ) from error
        except httpx.RemoteProtocolError as error:
            raise CollateralUnavailable(
                f"collateral service broke off its answer to GET {path}",
                expected="a whole answer in HTTP",
                got=ascii(str(error)[:120]),
                rule="source.protocol",
                hint="look in the log of the service, and of what is between",
            ) from error
        except httpx.HTTPError as error:
            raise CollateralUnavailable(
                f"collateral service can't be reached for GET {path}",
                got=ascii(str(error)[:120]),
                rule="source.unreachable",
                hint="check the URL, the name resolution, the certificate and the network; "
                "proxies of the environment are not used",
            ) from error


@dataclass(frozen=True, slots=True)
class _Answer:
    path: str
    headers: Mapping[str, str]
    body: bytes

    def chain(self, *names: str) -> str:
        """The certificate chain in the first of these headers that is there."""
        coded = next((self.headers[name] for name in names if name in self.headers), None)
        if coded is None:
            raise CollateralFormatError(
                f"answer to GET {self.path} comes without its issuer",
                expected=f"a header {names[0]}",
                got="none",
                rule="source.header",
                hint="check that the URL is that of Intel's service or of a PCCS, version 4 or 3",
            )
        try:
            return unquote(coded, errors="strict")
        except UnicodeDecodeError as error:
            raise CollateralFormatError(
                f"issuer of GET {self.path} is no text",
                expected="URL-encoded PEM",
                got=error.reason,
                rule="source.header-text",
                hint="look in the log of the service",
            ) from error


def signed_member(body: bytes, member: str) -> tuple[str, bytes]:
    """Of `{"<member>":{...},"signature":"<hex>"}` the exact text of the member, and r and s.

    The signature is over that text: decoded and encoded again it would be another.

    Raises CollateralFormatError: rule source.text, source.json, source.members,
    source.duplicate-member, source.trailing, source.signature.
    """
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError as error:
        _malformed("source.text", member, "ASCII", error.reason)
    try:
        members = _members(text, member)
    except (ValueError, RecursionError) as error:
        _malformed("source.json", member, "a JSON object", str(error)[:120])
    if members.keys() != {member, "signature"}:
        names = ", ".join(ascii(name[:40]) for name in members)
        _malformed("source.members", member, f"{member} and signature", names)
    signature = _SIGNATURE.fullmatch(members["signature"])
    if signature is None:
        _malformed("source.signature", member, f"{2 * SIGNATURE_BYTES} hex digits", "another")
    return members[member], bytes.fromhex(signature[1])


def _members(text: str, name: str) -> dict[str, str]:
    """The texts of the two members of a JSON object. Raises ValueError for other JSON."""
    found: dict[str, str] = {}
    at = _after(text, 0, "{")
    for mark in ",}":
        key, at = _JSON.raw_decode(text, at)
        if not isinstance(key, str):
            _malformed("source.member-name", name, "members with names", type(key).__name__)
        if key in found:
            _malformed("source.duplicate-member", name, "each member once", ascii(key[:40]))
        start = _after(text, at, ":")
        _, at = _JSON.raw_decode(text, start)
        found[key] = text[start:at]
        at = _after(text, at, mark)
    if at != len(text):
        _malformed("source.trailing", name, "two members and the end", "more")
    return found


def _after(text: str, at: int, mark: str) -> int:
    """The place after a mark, and spaces around it."""
    match = _MARKS.match(text, at)
    if match is None or match[1] != mark:
        raise ValueError(f"no {mark!r} at {at}")
    return match.end()


def _malformed(rule: str, member: str, expected: str, got: str) -> NoReturn:
    raise CollateralFormatError(
        f"answer with {member} is malformed",
        expected=expected,
        got=got,
        rule=rule,
        hint="check that the URL is that of Intel's service or of a PCCS",
    )


def _unhex(body: bytes) -> bytes:
    match = _HEX.fullmatch(body)
    if match is None:
        _malformed("source.hex", "the revocation list of the root", "hex digits", "another text")
    return bytes.fromhex(match[1].decode())


def _check_status(response: httpx.Response, path: str) -> None:
    status = response.status_code
    if status == 404 and path.endswith(_TCB_INFO):
        raise CollateralRejected(
            "collateral service does not know this model of platform",
            expected="an FMSPC of a TDX platform",
            got=f"404 for GET {path}",
            rule="source.unknown-fmspc",
            hint="check the FMSPC; a PCCS without a network must be filled for it first",
        )
    if status == 410:
        raise CollateralRejected(
            "collateral service no longer has this evaluation",
            expected="an evaluation that Intel still serves",
            got=f"410 for GET {path}",
            rule="source.retired",
            hint="ask for a newer one: trying again does not help",
        )
    if status in {429, 503}:
        raise SourceBusy(path, status, _retry_after(response.headers))
    if 300 <= status < 400:
        raise CollateralUnavailable(
            f"collateral service sends GET {path} elsewhere",
            expected="status 200",
            got=f"{status}",
            rule="source.redirect",
            hint="give the URL of the service itself; redirects are not followed",
        )
    if status != 200:
        raise CollateralUnavailable(
            f"collateral service refuses GET {path}",
            expected="status 200",
            got=f"{status}",
            rule="source.status",
            hint="check the URL, and look in the log of the service",
        )


async def _body(response: httpx.Response, path: str) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise CollateralFormatError(
            f"answer to GET {path} is compressed, which was not asked for",
            expected="content-encoding identity",
            got=ascii(response.headers["content-encoding"][:40]),
            rule="source.encoding",
            hint="look what is between this machine and the service",
        )
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise CollateralFormatError(
                f"answer to GET {path} is too large",
                expected=f"at most {MAX_ANSWER} bytes",
                got="more",
                rule="source.size",
                hint="check that the URL is that of Intel's service or of a PCCS",
            )
    return bytes(body)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds (RFC 9110 section 10.2.3); a date counts from the clock of the service."""
    text = headers.get("retry-after", "")
    if re.fullmatch("[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            then = parsedate_to_datetime(text)
            seconds = (then - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _parsed(base: str) -> httpx.URL | None:
    try:
        return httpx.URL(base)
    except (httpx.InvalidURL, ValueError):
        return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
