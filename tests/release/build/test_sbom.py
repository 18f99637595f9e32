"""The bill of materials: valid CycloneDX 1.6, complete, and the same bytes each time."""

import hashlib
import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from release.build import sbom as sbom_module
from release.build.lock import SOURCE_DATE_EPOCH
from release.build.sbom import sbom
from release.build.settings import DISTRIBUTIONS
from release.build.wheels import Wheel
from tests.release.build.support import deb

DEBS = (deb("alpha", "1:2.0~rc1+b3"), deb("libstdc++6", "14.2.0-19", architecture="all"))
WHEELS = (Wheel("click", "8.1.8", "0" * 64, "click-8.1.8-py3-none-any.whl"),)
UKI = hashlib.sha256(b"uki").hexdigest()


def made(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "image": "zipnet-server",
        "version": "0.1.0",
        "uki_sha256": UKI,
        "debs": DEBS,
        "wheels": WHEELS,
        "distribution": DISTRIBUTIONS["debian"],
        "epoch": SOURCE_DATE_EPOCH,
    }
    return sbom(**(arguments | changes))


@pytest.mark.parametrize("change", [{}, {"debs": (), "wheels": ()}, {"debs": DEBS * 1}])
def test_schema(change: dict[str, Any]) -> None:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(made(**change).decode())
    assert problem is None, problem


def test_the_validator_finds_problems() -> None:
    broken = json.loads(made()) | {"surprise": 1}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_content() -> None:
    found = json.loads(made())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    root = found["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == (
        "zipnet-server",
        "0.1.0",
        "operating-system",
    )
    assert root["hashes"] == [{"alg": "SHA-256", "content": UKI}]
    assert found["metadata"]["timestamp"] == "2025-01-01T00:00:00+00:00"
    parts = {c["purl"]: c for c in found["components"]}
    assert set(parts) == {
        "pkg:deb/debian/alpha@1:2.0~rc1%2Bb3?arch=amd64&distro=trixie",
        "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=all&distro=trixie",
        "pkg:pypi/click@8.1.8",
    }
    alpha = parts["pkg:deb/debian/alpha@1:2.0~rc1%2Bb3?arch=amd64&distro=trixie"]
    assert alpha["version"] == "1:2.0~rc1+b3"
    assert alpha["hashes"] == [{"alg": "SHA-256", "content": DEBS[0].sha256}]
    depends = {d["ref"]: d.get("dependsOn", []) for d in found["dependencies"]}
    assert sorted(depends["zipnet-server"]) == sorted(parts)


def test_deterministic() -> None:
    raw = made()
    assert raw == made()
    # The order in which parts are found is no part of it.
    assert raw == made(debs=DEBS[::-1])
    assert raw.endswith(b"}\n")


def test_the_library_does_not_name_itself() -> None:
    assert b"cyclonedx-python-lib" not in made()
    assert "tools" not in json.loads(made())["metadata"]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "zipnet-client"},
        {"version": "0.2.0"},
        {"uki_sha256": "1" * 64},
    ],
)
def test_serial_number_names_the_image(change: dict[str, str]) -> None:
    one, two = json.loads(made()), json.loads(made(**change))
    assert one["serialNumber"] != two["serialNumber"]
    assert one["serialNumber"].startswith("urn:uuid:")


def test_serial_number_is_that_of_its_namespace() -> None:
    number = json.loads(made())["serialNumber"].removeprefix("urn:uuid:")
    assert number[14] == "5"
    assert number != str(sbom_module.NAMESPACE)
