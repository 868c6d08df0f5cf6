"""What secure sums are made of: keys, masks, sealed shares and secret sharing, from libraries that are kept.

X25519, HKDF-SHA256, ChaCha20 and ChaCha20-Poly1305 are those of `cryptography`, Shamir's secret sharing over
GF(2^128) that of `pycryptodome`. All secrets are 16 bytes, which suits the 128 bits of security of X25519.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedistill.communication.secure_aggregation.fixed_point import Addend
from fedistill.communication.secure_aggregation.sizes import COMMITMENT
from fedistill.communication.tensor_specs import Classes
from fedistill.errors import FrameError

_NONCE = bytes(12)
"""A key seals one message, so that a nonce of zeros is never used twice with it."""


class KeyPair:
    """An X25519 key pair that is derived from a secret."""

    def __init__(self, secret: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(_derived(secret, "key pair"))

    @property
    def public(self) -> bytes:
        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def agreed(self, public: bytes, purpose: str) -> bytes:
        """Return the key (32 bytes), for a purpose, of this pair and the owner of a public key.

        Raises:
            FrameError: the public key is not one, but a point of small order.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise FrameError("a public key is not one that can be agreed with") from None
        return _derived(shared, purpose)


def self_mask_key(secret: bytes, round: int) -> bytes:
    """Return the key (32 bytes) of the mask that a client derives from its secret alone."""
    return _derived(secret, f"own mask in round {round}")


def commitment(secret: bytes) -> bytes:
    """Return 16 bytes by which a secret can be recognised, and from which it cannot be found."""
    digest = Hash(SHA256())
    digest.update(b"fedistill secure sums: commitment" + secret)
    return digest.finalize()[:COMMITMENT]


def mask(key: bytes, addends: Mapping[str, Addend]) -> dict[str, Classes]:
    """Return pseudorandom integers (n,) of 64 bits for each addend, from the key stream of ChaCha20.

    The lowest bits, as many as an addend's sum has, make a mask that is uniform below its modulus.
    """
    count = sum(addend.count for addend in addends.values())
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    drawn = np.frombuffer(stream, "<i8").astype(np.int64)
    ends = np.cumsum([addend.count for addend in addends.values()])[:-1]
    return dict(zip(addends, np.split(drawn, ends), strict=True))


def seal(key: bytes, plain: bytes) -> bytes:
    """Return bytes that only the owners of the key can read, and nobody else can change; 16 more."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return what was sealed with this key.

    Raises:
        FrameError: it was not, or has been changed since.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise FrameError("it has been changed on its way, or was sealed for somebody else") from None


def split(secret: bytes, needed: int, parts: int) -> list[bytes]:
    """Return shares of a secret, of which any ``needed`` give it back, and fewer say nothing about it."""
    return [share for _, share in Shamir.split(needed, parts, secret, ssss=False)]


def joined(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """Return the secret from as many shares as are needed, each with its place among all, from 0."""
    return Shamir.combine([(place + 1, share) for place, share in shares], ssss=False)


def _derived(secret: bytes, purpose: str) -> bytes:
    info = f"fedistill secure sums: {purpose}".encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
