"""The 32-byte ids of deployments, their parts, clients and servers.

As in mosaik: the id of a text is its BLAKE3, or the bytes themselves where the text is 64 hex
digits; what belongs to an id is `derive`d from it. The ids of clients and servers are keyed BLAKE3
of their identity X25519 keys, under keys that derive-key mode makes from CLIENT and SERVER.
"""

import re
from dataclasses import dataclass

from blake3 import blake3

from zipnet.errors import ConfigRejected

CLIENT = "zipnet:client:id-v1"
SERVER = "zipnet:server:id-v1"

_HEX = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class UniqueId:
    """32 bytes. Raises ConfigRejected for another size."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ConfigRejected(
                "this is no id", expected="32 bytes", got=str(len(self.raw)), rule="id-size"
            )

    @classmethod
    def of(cls, text: str) -> "UniqueId":
        """The id that 64 hex digits spell, else BLAKE3 of the UTF-8 text. Raises ConfigRejected."""
        if _HEX.fullmatch(text):
            return cls(bytes.fromhex(text))
        return cls(blake3(_utf8(text)).digest())

    def derive(self, info: str | bytes) -> "UniqueId":
        """BLAKE3(id ‖ info), a text as UTF-8. Raises ConfigRejected."""
        more = _utf8(info) if isinstance(info, str) else info
        return UniqueId(blake3(self.raw + more).digest())

    def hex(self) -> str:
        """64 lower-case hex digits."""
        return self.raw.hex()

    def __bytes__(self) -> bytes:
        return self.raw


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigRejected(
            "a name can't be written as UTF-8",
            expected="Unicode text without surrogates",
            got=ascii(text)[:80],
            rule="id-text",
        ) from error


UNIVERSE = UniqueId.of("mosaik.universe")


@dataclass(frozen=True, slots=True)
class InstanceIds:
    """The ids of a deployment's parts, each derived from its id by the part's name."""

    committee: UniqueId
    submit: UniqueId
    register: UniqueId
    broadcasts: UniqueId
    live_round: UniqueId
    client_registry: UniqueId
    server_registry: UniqueId
    receipts: UniqueId

    @classmethod
    def of(cls, deployment: UniqueId) -> "InstanceIds":
        """The ids of the deployment with this id."""
        return cls(
            committee=deployment.derive("committee"),
            submit=deployment.derive("submit"),
            register=deployment.derive("register"),
            broadcasts=deployment.derive("broadcasts"),
            live_round=deployment.derive("live-round"),
            client_registry=deployment.derive("client-registry"),
            server_registry=deployment.derive("server-registry"),
            receipts=deployment.derive("receipts"),
        )


def client_id(dh_pub: bytes) -> bytes:
    """The id (32 bytes) of the client whose identity X25519 key (32 bytes) this is."""
    return blake3(dh_pub, key=blake3(b"", derive_key_context=CLIENT).digest()).digest()


def server_id(dh_pub: bytes) -> bytes:
    """The id (32 bytes) of the server whose identity X25519 key (32 bytes) this is."""
    return blake3(dh_pub, key=blake3(b"", derive_key_context=SERVER).digest()).digest()
