"""Signatures of bundles: made, checked, refused."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from hat_export.bundle.bundle import SIGNATURE, Bundle
from hat_export.bundle.signature import check_signature, make_keys, public_path, sign_bundle
from hat_export.cli import bench, export
from hat_export.errors import BundleError, InputError, OutputError, SignatureError
from hat_export.runtime.backends.opening import open_bundle


@pytest.fixture
def key(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography")
    secret = tmp_path / "keys" / "release"
    make_keys(secret)
    return secret


def test_a_signed_bundle_opens(bundle_copy: Path, key: Path) -> None:
    sign_bundle(bundle_copy, key)
    check_signature(bundle_copy, public_path(key))
    Bundle.read(bundle_copy)
    with open_bundle(bundle_copy, threads=1, require_signature=public_path(key)) as session:
        assert len(session.encode_texts(["a dog"])) == 1


def test_an_unsigned_bundle_is_refused(bundle_copy: Path, key: Path) -> None:
    with pytest.raises(SignatureError, match="isn't signed"):
        open_bundle(bundle_copy, require_signature=public_path(key))


def test_another_keys_signature_is_refused(bundle_copy: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_keys(other)
    sign_bundle(bundle_copy, other)
    with pytest.raises(SignatureError, match="signed by key"):
        open_bundle(bundle_copy, require_signature=public_path(key))


def test_another_keys_signature_with_this_keys_name(bundle_copy: Path, key: Path) -> None:
    """The identifier is only a name: whoever copies it has no key yet."""
    other = key.with_name("other")
    make_keys(other)
    sign_bundle(bundle_copy, other)
    path = bundle_copy / SIGNATURE
    lines = path.read_text().splitlines()
    mine = base64.b64decode(public_path(key).read_text().splitlines()[1])
    forged = bytearray(base64.b64decode(lines[1]))
    forged[2:10] = mine[2:10]
    lines[1] = base64.b64encode(forged).decode()
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(SignatureError, match="its signature is wrong"):
        check_signature(bundle_copy, public_path(key))


def test_a_changed_manifest_is_refused(bundle_copy: Path, key: Path) -> None:
    sign_bundle(bundle_copy, key)
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text().replace('"opset"', '"opset" ', 1))
    with pytest.raises(SignatureError, match="its signature is wrong"):
        open_bundle(bundle_copy, require_signature=public_path(key))


def test_a_changed_comment_is_refused(bundle_copy: Path, key: Path) -> None:
    path = sign_bundle(bundle_copy, key)
    path.write_text(path.read_text().replace("trusted comment: hat", "trusted comment: cat"))
    with pytest.raises(SignatureError, match="its signature is wrong"):
        check_signature(bundle_copy, public_path(key))


def test_a_changed_file_is_refused_even_without_verifying(bundle_copy: Path, key: Path) -> None:
    sign_bundle(bundle_copy, key)
    path = bundle_copy / "text.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        open_bundle(bundle_copy, verify=False, require_signature=public_path(key))


@pytest.mark.parametrize("content", ["", "x\ny\nz\n", "untrusted comment: a\nAAAA\n", "\xff\n" * 9])
def test_damaged_signatures_and_keys(bundle_copy: Path, key: Path, content: str) -> None:
    sign_bundle(bundle_copy, key)
    (bundle_copy / SIGNATURE).write_text(content, encoding="latin-1")
    with pytest.raises(SignatureError):
        check_signature(bundle_copy, public_path(key))
    damaged = key.with_name("damaged")
    damaged.write_text(content, encoding="latin-1")
    with pytest.raises(InputError):
        check_signature(bundle_copy, damaged)
    with pytest.raises(InputError):
        sign_bundle(bundle_copy, damaged)


#: Commands that use no bundle, and the one that signs them.
WITHOUT_BUNDLE = {
    *("onnx", "keygen", "sign", "index-delete"),
    *("compare", "report", "scoring"),
}


def test_every_command_that_opens_a_bundle_can_require_a_signature() -> None:
    seen = set()
    for app in (export.app, bench.app):
        for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
            options = {word for option in command.params for word in option.opts}
            assert ("--require-signature" in options) != (name in WITHOUT_BUNDLE), name
            seen.add(name)
    assert seen > WITHOUT_BUNDLE


def test_a_damaged_bundle_is_not_signed(bundle_copy: Path, key: Path) -> None:
    (bundle_copy / "text.onnx").write_bytes(b"x")
    with pytest.raises(BundleError):
        sign_bundle(bundle_copy, key)
    assert not (bundle_copy / SIGNATURE).exists()


def test_keys_are_private_and_never_overwritten(key: Path) -> None:
    assert key.stat().st_mode & 0o077 == 0
    with pytest.raises(OutputError, match="never overwritten"):
        make_keys(key)


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign isn't installed")
def test_minisign_agrees(bundle_copy: Path, key: Path, tmp_path: Path) -> None:
    manifest = str(bundle_copy / "manifest.json")
    sign_bundle(bundle_copy, key)
    subprocess.run(["minisign", "-Vm", manifest, "-p", public_path(key)], check=True)
    theirs, public = tmp_path / "theirs", tmp_path / "theirs.pub"
    subprocess.run(["minisign", "-GWf", "-p", public, "-s", theirs], check=True)
    subprocess.run(["minisign", "-S", "-s", theirs, "-m", manifest], check=True)
    check_signature(bundle_copy, public)
    sign_bundle(bundle_copy, theirs)
    subprocess.run(["minisign", "-Vm", manifest, "-p", public], check=True)
