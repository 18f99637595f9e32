"""A TPM through the ESAPI of tpm2-tss: the one module that needs tpm2-pytss.

Every command of a conversation that matters goes through a session salted to the storage root key:
its answers carry an HMAC, and secrets cross the bus under AES-128-CFB. Source: TCG "TSS 2.0
Enhanced System API", and the SRK template of TCG "EK Credential Profile" for ECC P-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from attestation.errors import SealRefused, SealUnavailable
from attestation.seal import tpm2_device as steps
from attestation.seal.tpm2_policy import (
    COUNTER_ATTRIBUTES,
    COUNTER_SIZE,
    Pcrs,
    counter_name,
    public_start,
)

try:
    import tpm2_pytss as tss
    from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_EO, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
except (ImportError, NotImplementedError) as error:
    raise SealUnavailable(
        "sealing with a TPM needs a library that is not installed",
        got=str(error),
        rule="seal.tpm2-library",
        hint="pip install zipnet[tpm]; it needs libtss2-dev, a C compiler and Python's headers",
    ) from error

# fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt
_SRK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)
_STAYS = TPMA_SESSION.CONTINUESESSION


@dataclass(frozen=True, slots=True)
class Esys:
    """The TPM that a TCTI string names. It raises SealUnavailable if there is none."""

    tcti: str

    @contextmanager
    def connect(self) -> Iterator[EsysTpm]:
        """As `Device.connect`."""
        with _explained("connect"):
            context = tss.ESAPI(self.tcti)
        with context:
            tpm = EsysTpm.begin(context)
            try:
                yield tpm
            finally:
                tpm.end()


class EsysTpm:
    """As `Tpm`."""

    __slots__ = ("_context", "_session", "_srk")

    def __init__(self, context: Any, srk: Any, session: Any) -> None:
        self._context = context
        self._srk = srk
        self._session = session

    @classmethod
    def begin(cls, context: Any) -> Self:
        """Make the storage root key, and a session salted to it."""
        srk = _primary(context, ESYS_TR.OWNER)
        try:
            session = _session(context, srk, TPM2_SE.HMAC)
        except BaseException:
            context.flush_context(srk)
            raise
        return cls(context, srk, session)

    def end(self) -> None:
        """Leave nothing in the TPM. What can't be flushed goes with the connection."""
        for handle in (self._session, self._srk):
            try:
                self._context.flush_context(handle)
            except tss.TSS2_Exception:
                continue

    @property
    def srk_name(self) -> bytes:
        """As `Tpm.srk_name`; ESAPI computed it from the key that the session is salted to."""
        return bytes(self._context.tr_get_name(self._srk))

    def ek_name(self) -> bytes | None:
        """As `Tpm.ek_name`."""
        try:
            handle = _primary(self._context, ESYS_TR.ENDORSEMENT)
        except SealUnavailable as error:
            if error.rule == "seal.owner-auth":
                return None
            raise
        try:
            return bytes(self._context.tr_get_name(handle))
        finally:
            self._context.flush_context(handle)

    def pcr_digest(self, pcrs: Pcrs) -> bytes:
        """As `Tpm.pcr_digest`."""
        with _explained("pcr-read"):
            _, selected, values = self._context.pcr_read(
                str(pcrs), session1=self._with(TPMA_SESSION.AUDIT)
            )
        read = [bytes(value) for value in values]
        if bytes(selected[0].pcrSelect)[: len(pcrs.select)] != pcrs.select:
            raise SealUnavailable(
                "the TPM has not all of the registers",
                expected=str(pcrs),
                got=f"{len(read)} values",
                rule="seal.pcr-bank",
                hint="turn on the SHA-256 bank in the firmware's settings",
            )
        return hashlib.sha256(b"".join(read)).digest()

    def extend(self, pcr: int, digest: bytes) -> None:
        """As `Tpm.extend`."""
        digests = tss.TPML_DIGEST_VALUES(
            [tss.TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))]
        )
        with _explained("extend"):
            self._context.pcr_extend(ESYS_TR.PCR0 + pcr, digests, session1=self._with())

    def counter(self, index: int) -> int | None:
        """As `Tpm.counter`. Raises SealRefused, rule `seal.counter-foreign`."""
        try:
            handle = self._nv(index)
            with _explained(steps.NV):
                raw = self._context.nv_read(handle, COUNTER_SIZE, 0, handle, session1=self._with())
        except SealRefused as error:
            if error.rule == steps.NO_COUNTER:
                return None
            raise
        return int.from_bytes(bytes(raw), "big")

    def define_counter(self, index: int) -> int:
        """As `Tpm.define_counter`."""
        try:
            self._nv(index)
        except SealRefused as error:
            if error.rule != steps.NO_COUNTER:
                raise
            self._define(index)
        self.increment(index)
        value = self.counter(index)
        if value is None:
            raise steps.refusal(steps.NV, steps.NV_UNINITIALIZED)
        return value

    def _define(self, index: int) -> None:
        public = tss.TPM2B_NV_PUBLIC(
            nvPublic=tss.TPMS_NV_PUBLIC(
                nvIndex=index,
                nameAlg=TPM2_ALG.SHA256,
                attributes=COUNTER_ATTRIBUTES,
                dataSize=COUNTER_SIZE,
            )
        )
        with _explained(steps.NV):
            self._context.nv_define_space(b"", public, session1=self._with(TPMA_SESSION.DECRYPT))

    def increment(self, index: int) -> None:
        """As `Tpm.increment`."""
        handle = self._nv(index)
        with _explained(steps.NV):
            self._context.nv_increment(handle, handle, session1=self._with())

    def create(self, secret: bytes, policy: bytes) -> tuple[bytes, bytes]:
        """As `Tpm.create`."""
        sensitive = tss.TPM2B_SENSITIVE_CREATE(
            sensitive=tss.TPMS_SENSITIVE_CREATE(data=tss.TPM2B_SENSITIVE_DATA(secret))
        )
        # Ours but for `unique`, which the TPM fills in.
        template, _ = tss.TPMT_PUBLIC.unmarshal(public_start(policy) + bytes(2))
        with _explained("create"):
            private, public, *_ = self._context.create(
                self._srk,
                sensitive,
                tss.TPM2B_PUBLIC(publicArea=template),
                session1=self._with(TPMA_SESSION.DECRYPT),
            )
        return public.publicArea.marshal(), bytes(private)

    def open(
        self,
        public: bytes,
        private: bytes,
        pcrs: Pcrs,
        pcr_digest: bytes,
        index: int,
        value: int,
        *,
        count: bool,
    ) -> bytes:
        """As `Tpm.open`."""
        area, _ = tss.TPMT_PUBLIC.unmarshal(public)
        context, nv = self._context, self._nv(index)
        with _explained(steps.LOAD):
            item = context.load(
                self._srk,
                tss.TPM2B_PRIVATE(private),
                tss.TPM2B_PUBLIC(publicArea=area),
                session1=self._with(),
            )
        try:
            if count:
                self.increment(index)
            session = _session(context, self._srk, TPM2_SE.POLICY)
            try:
                with _explained(steps.POLICY_PCR):
                    context.policy_pcr(session, pcr_digest, str(pcrs))
                with _explained(steps.POLICY_NV):
                    operand = value.to_bytes(COUNTER_SIZE, "big")
                    context.policy_nv(nv, nv, session, operand, TPM2_EO.EQ, session1=self._with())
                context.trsess_set_attributes(session, _STAYS | TPMA_SESSION.ENCRYPT)
                with _explained(steps.UNSEAL):
                    return bytes(context.unseal(item, session1=session))
            finally:
                context.flush_context(session)
        finally:
            context.flush_context(item)

    def _with(self, attributes: Any = 0) -> Any:
        """The session, for one command."""
        self._context.trsess_set_attributes(self._session, _STAYS | attributes)
        return self._session

    def _nv(self, index: int) -> Any:
        """Our counter at an index, counted or not yet."""
        context = self._context
        with _explained(steps.NV):
            handle = context.tr_from_tpmpublic(index, session1=self._with(TPMA_SESSION.ENCRYPT))
        name = bytes(context.tr_get_name(handle))
        if name not in {counter_name(index), counter_name(index, written=False)}:
            raise SealRefused(
                "something else is where the counter should be",
                expected=counter_name(index).hex(),
                got=name.hex(),
                rule="seal.counter-foreign",
                hint=f"see what uses the NV index {index:#x}, or choose another nv_index",
            )
        return handle


def _primary(context: Any, hierarchy: Any) -> Any:
    template = tss.TPM2B_PUBLIC.parse(
        "ecc256:aes128cfb", objectAttributes=_SRK_ATTRIBUTES, nameAlg=TPM2_ALG.SHA256
    )
    with _explained("create-primary"):
        handle, *_ = context.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(), template, hierarchy, session1=ESYS_TR.PASSWORD
        )
    return handle


def _session(context: Any, srk: Any, kind: Any) -> Any:
    with _explained("session"):
        return context.start_auth_session(srk, ESYS_TR.NONE, kind, "aes128cfb", TPM2_ALG.SHA256)


@contextmanager
def _explained(step: str) -> Iterator[None]:
    try:
        yield
    except tss.TSS2_Exception as error:
        raise steps.refusal(step, error.rc) from error
