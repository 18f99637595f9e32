"""Protobuf's text format, as far as checkconfig.proto needs it, with the schema's own checks.

By protobuf.dev/reference/protobuf/textformat-spec and the fields of go-tdx-guest's
checkconfig.proto: like prototext.Unmarshal, it refuses unknown fields, and a field twice that is
not repeated.
"""

import re
from typing import Any

_TOKEN = re.compile(
    r"(?P<skip>[ \t\n]+|#[^\n]*)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<mark>[{}:])"
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)

BODY = {
    "minimum_tee_tcb_svn": bytes,
    "mr_seam": bytes,
    "td_attributes": bytes,
    "xfam": bytes,
    "mr_td": bytes,
    "mr_config_id": bytes,
    "mr_owner": bytes,
    "mr_owner_config": bytes,
    "rtmrs": [bytes],
    "report_data": bytes,
    "any_mr_td": [bytes],
    "enable_td_debug_check": bool,
}
CONFIG = {
    "policy": {"header_policy": {"qe_vendor_id": bytes}, "td_quote_body_policy": BODY},
    "root_of_trust": {
        "cabundle_paths": [bytes],
        "cabundles": [bytes],
        "check_crl": bool,
        "get_collateral": bool,
    },
}


def parse(text: str) -> dict[str, Any]:
    """The Config in the text. Raises ValueError."""
    tokens = _tokens(text)
    found = _message(tokens, CONFIG, nested=False)
    assert not tokens
    return found


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no token at {at}")
        if match.lastgroup != "skip":
            found.append(match[0])
        at = match.end()
    return found


def _message(tokens: list[str], schema: dict[str, Any], *, nested: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while tokens and tokens[0] != "}":
        name = tokens.pop(0)
        if name not in schema:
            raise ValueError(f"unknown field {name}")
        kind = schema[name]
        if isinstance(kind, list):
            found.setdefault(name, []).append(_value(tokens, kind[0]))
            continue
        if name in found:
            raise ValueError(f"{name} twice")
        found[name] = _value(tokens, kind)
    if nested:
        _take(tokens, "}")
    return found


def _value(tokens: list[str], kind: Any) -> Any:
    if isinstance(kind, dict):
        if tokens and tokens[0] == ":":
            tokens.pop(0)
        _take(tokens, "{")
        return _message(tokens, kind, nested=True)
    _take(tokens, ":")
    token = tokens.pop(0) if tokens else ""
    if kind is bool:
        return {"true": True, "false": False}[token]
    if not token.startswith('"'):
        raise ValueError(f"{token} is no string")
    data = b""
    while True:
        data += _bytes(token[1:-1])
        # Adjacent literals are one string.
        if not tokens or not tokens[0].startswith('"'):
            return data
        token = tokens.pop(0)


def _bytes(text: str) -> bytes:
    def one(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2]:
            return chr(int(match[2], 8))
        return {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}[match[3]]

    return _ESCAPE.sub(one, text).encode("latin-1")


def _take(tokens: list[str], token: str) -> None:
    if not tokens or tokens.pop(0) != token:
        raise ValueError(f"no {token}")
