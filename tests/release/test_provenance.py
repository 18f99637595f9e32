"""The provenance of a release, as others read it."""

import json

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # not said to be exported

from release import provenance, signing
from release.errors import ReleaseFormatError, ReleaseRejected
from release.manifest import Manifest
from release.verify_files import Opened
from tests.release.small import KEY, OTHER_KEY, SIGNER, altered, refused


def test_a_public_library_verifies_it(released: Opened) -> None:
    raw = (released.folder / provenance.NAME).read_bytes()
    found = Envelope.from_dict(json.loads(raw))
    assert found.payload_type == "application/vnd.in-toto+json"
    assert found.verify([SSlibKey.from_crypto(KEY.public_key(), keyid=SIGNER.hex)], 1)


def test_the_shape_that_in_toto_and_slsa_specify(released: Opened) -> None:
    manifest = released.manifest
    document = json.loads(provenance.statement(manifest))
    assert document.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {each["name"]: each["digest"]["sha256"] for each in document["subject"]}
    images = {
        output.name: output.sha256
        for entry in manifest.roles
        for output in (entry.image, entry.firmware)
    }
    assert subjects == images
    assert len(document["subject"]) == 6
    predicate = document["predicate"]
    assert predicate.keys() == {"buildDefinition", "runDetails"}
    definition = predicate["buildDefinition"]
    assert definition.keys() == {
        "buildType",
        "externalParameters",
        "internalParameters",
        "resolvedDependencies",
    }
    assert definition["buildType"].startswith("urn:")
    assert definition["externalParameters"]["commit"] == manifest.commit
    assert definition["externalParameters"]["roles"] == ["aggregator", "client", "server"]
    # A resource descriptor has a digest, a URI or content; a digest set maps text to hex.
    for each in definition["resolvedDependencies"]:
        assert each.keys() == {"name", "digest"}
        assert all(bytes.fromhex(value) for value in each["digest"].values())
    names = [each["name"] for each in definition["resolvedDependencies"]]
    assert names == ["source", "debian-trixie.lock", "tools.lock", "requirements.lock"]
    builder = predicate["runDetails"]["builder"]
    assert builder["id"].startswith("urn:")
    assert all(isinstance(value, str) for value in builder["version"].values())


def test_in_toto_s_own_library_reads_it(released: Opened) -> None:
    """Its parsers refuse fields that the specifications don't have."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    package = "in_toto_attestation"
    statements = pytest.importorskip(f"{package}.v1.statement_pb2")
    wrapper = pytest.importorskip(f"{package}.v1.statement").Statement
    predicates = pytest.importorskip(f"{package}.predicates.provenance.v1.provenance_pb2")
    raw = provenance.statement(released.manifest)
    statement = json_format.Parse(raw, statements.Statement())
    wrapper.copy_from_pb(statement).validate()
    assert len(statement.subject) == 6
    predicate = json.dumps(json.loads(raw)["predicate"])
    found = json_format.Parse(predicate, predicates.Provenance())
    dependencies = found.build_definition.resolved_dependencies
    assert dependencies[0].digest["gitCommit"] == released.manifest.commit
    assert found.run_details.builder.id == provenance.BUILDER


def test_it_is_that_of_the_manifest(released: Opened) -> None:
    raw = provenance.sign(released.manifest, KEY)
    provenance.check(raw, released.manifest, [SIGNER])
    change = altered(released.signed.payload, lambda d: d.update(commit="0" * 40))
    other = Manifest.loads(change)
    with refused(ReleaseRejected, "release.provenance"):
        provenance.check(raw, other, [SIGNER])
    with refused(ReleaseRejected, "signature.key"):
        provenance.check(provenance.sign(released.manifest, OTHER_KEY), released.manifest, [SIGNER])


def test_a_manifest_is_no_provenance(released: Opened) -> None:
    raw = signing.sign(provenance.statement(released.manifest), signing.PAYLOAD_TYPE, KEY)
    with refused(ReleaseFormatError, "envelope.payload-type"):
        provenance.check(raw, released.manifest, [SIGNER])
