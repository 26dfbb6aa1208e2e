"""Signatures of bundles, in the format of minisign.

A manifest holds the SHA-256 of every other file, so that signing it signs the bundle. The format
is that of `minisign <https://jedisct1.github.io/minisign/>`_ (Ed25519 over the BLAKE2b-512 of the
file, with a signed comment), so that ``minisign -Vm manifest.json -p KEY.pub`` checks what this
module signed, and this module what ``minisign -Sm manifest.json`` did.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hat_export.base.files import write_text
from hat_export.bundle.bundle import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Bundle
from hat_export.errors import BackendUnavailableError, InputError, OutputError, SignatureError

#: Of a public key, and of a signature of the hash of a file.
_KEY, _HASHED = b"Ed", b"ED"
#: A secret key without a password: no key derivation, checksum by BLAKE2b.
_PLAIN_SECRET = b"Ed\0\0B2"
_SECRET_BYTES = 6 + 32 + 8 + 8
_COMMENT, _TRUSTED = "untrusted comment: ", "trusted comment: "
#: Key and signature files are a few hundred bytes.
_MAX_BYTES = 4096


@dataclass(frozen=True)
class PublicKey:
    """A key that checks signatures.

    Attributes:
        identifier: 8 bytes by which a signature names its key.
        key: Ed25519, 32 bytes.
    """

    identifier: bytes
    key: bytes

    @property
    def name(self) -> str:
        """As minisign shows it."""
        return self.identifier[::-1].hex().upper()


def make_keys(secret: Path) -> PublicKey:
    """Make a pair of keys: the secret one in a file without a password, the public one beside it.

    Args:
        secret: Where; the public key goes to the same name with ``.pub`` behind it.

    Raises:
        OutputError: if one of them exists or can't be written.
    """
    from cryptography.hazmat.primitives import serialization as forms

    public = public_path(secret)
    for path in (secret, public):
        if path.exists():
            raise OutputError(f"{path}: exists already; a key is never overwritten")
    signer = _ed25519().Ed25519PrivateKey.generate()
    seed = signer.private_bytes(forms.Encoding.Raw, forms.PrivateFormat.Raw, forms.NoEncryption())
    key = signer.public_key().public_bytes(forms.Encoding.Raw, forms.PublicFormat.Raw)
    made = PublicKey(secrets.token_bytes(8), key)
    checked = made.identifier + seed + key
    checksum = hashlib.blake2b(_KEY + checked, digest_size=32).digest()
    content = _PLAIN_SECRET + bytes(32 + 8 + 8) + checked + checksum
    try:
        secret.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_COMMENT}hat-export secret key {made.name}\n{_encoded(content)}\n")
    except OSError as error:
        raise OutputError(f"{secret}: can't be written ({error.strerror})") from None
    content = _KEY + made.identifier + key
    write_text(public, f"{_COMMENT}hat-export public key {made.name}\n{_encoded(content)}\n")
    return made


def public_path(secret: Path) -> Path:
    """Where the public key of a secret one lies."""
    return secret.with_name(f"{secret.name}.pub")


def sign_bundle(folder: Path, secret: Path) -> Path:
    """Sign a bundle that is intact; a signature that is there is replaced.

    Args:
        folder: The bundle.
        secret: A secret key without a password, of this module or of ``minisign -GW``.

    Returns:
        The signature's file.

    Raises:
        BundleError: if the bundle is damaged.
        InputError: if the key can't be used.
        OutputError: if the signature can't be written.
    """
    Bundle.read(folder)
    lines = _lines(secret)
    content = _decoded(lines[1] if len(lines) > 1 else "", secret)
    if len(content) != _SECRET_BYTES + 8 + 64 + 32 or not content.startswith(_PLAIN_SECRET):
        raise InputError(
            f"{secret}: not a secret key without a password; make one with `hat-export keygen`, or "
            "sign with: minisign -Sm manifest.json"
        )
    checked, checksum = content[_SECRET_BYTES:-32], content[-32:]
    # minisign writes zeros where there is no password.
    if checksum not in (bytes(32), hashlib.blake2b(_KEY + checked, digest_size=32).digest()):
        raise InputError(f"{secret}: damaged, its checksum doesn't fit")
    signer = _ed25519().Ed25519PrivateKey.from_private_bytes(checked[8:40])
    manifest = (folder / MANIFEST).read_bytes()
    signature = signer.sign(hashlib.blake2b(manifest).digest())
    told = f"hat-export bundle {hashlib.sha256(manifest).hexdigest()}"
    overall = signer.sign(signature + told.encode())
    path = folder / SIGNATURE
    write_text(
        path,
        f"{_COMMENT}signature of {MANIFEST}\n{_encoded(_HASHED + checked[:8] + signature)}\n"
        f"{_TRUSTED}{told}\n{_encoded(overall)}\n",
    )
    return path


def check_signature(folder: Path, public: Path) -> None:
    """Refuse a bundle whose manifest isn't signed by a key.

    Nothing of the bundle but the manifest's bytes is read, and nothing is parsed. That every other
    file is what the manifest says has to be checked besides (:meth:`Bundle.read`).

    Args:
        folder: The bundle.
        public: The public key's file.

    Raises:
        SignatureError: if there is no signature, or it is wrong, or another key's.
        InputError: if the key can't be read.
    """
    from cryptography.exceptions import InvalidSignature

    key = read_public_key(public)
    path, manifest = folder / SIGNATURE, folder / MANIFEST
    try:
        lines = _lines(path)
    except InputError:
        raise SignatureError(
            f"{folder}: isn't signed; expected {SIGNATURE} by key {key.name} ({public})"
        ) from None
    damaged = SignatureError(f"{path}: not a signature; get the bundle again")
    if len(lines) < 4 or not lines[2].startswith(_TRUSTED):
        raise damaged
    try:
        content, overall = _decoded(lines[1], path), _decoded(lines[3], path)
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise SignatureError(f"{manifest}: too large for a manifest")
        signed = manifest.read_bytes()
    except InputError:
        raise damaged from None
    except OSError as error:
        raise SignatureError(f"{manifest}: can't be read ({error.strerror})") from None
    identifier, signature = content[2:10], content[10:]
    if identifier != key.identifier:
        raise SignatureError(
            f"{folder}: signed by key {PublicKey(identifier, b'').name}, not by {key.name} "
            f"({public})"
        )
    try:
        # Older signatures are of the file itself, not of its hash.
        message = signed if content[:2] == _KEY else hashlib.blake2b(signed).digest()
        checker = _ed25519().Ed25519PublicKey.from_public_bytes(key.key)
        checker.verify(signature, message)
        checker.verify(overall, signature + lines[2].removeprefix(_TRUSTED).encode())
    except InvalidSignature:
        raise SignatureError(
            f"{manifest}: its signature is wrong: it was changed after key {key.name} signed it"
        ) from None


def read_public_key(path: Path) -> PublicKey:
    """A public key's file.

    Raises:
        InputError: if it isn't one.
        BackendUnavailableError: if the library isn't installed.
    """
    _ed25519()
    lines = _lines(path)
    content = _decoded(next((line for line in lines if not line.startswith(_COMMENT)), ""), path)
    if len(content) != 42 or not content.startswith(_KEY):
        raise InputError(f"{path}: not a public key of `hat-export keygen` or minisign")
    return PublicKey(content[2:10], content[10:])


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(line: str, path: Path) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{path}: not a key or signature of minisign's format") from None


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise BackendUnavailableError(
            "signatures need the package cryptography, which isn't installed; install it with: "
            "pip install 'hat-export[sign]'"
        ) from None
    return ed25519
