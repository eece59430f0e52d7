"""A sealed value opens with its key at its place, and nowhere else."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.sealing import MasterKey, Sealed, Sealer
from services.auth.secrets import SecretDamagedError

MASTER = MasterKey(b"k" * 32)
STORE = "0198c0de-0000-7000-8000-000000000000"


def sealer(master: MasterKey = MASTER, store_id: str = STORE, purpose: str = "secrets", epoch: int = 1) -> Sealer:
    return Sealer(master, store_id=store_id, purpose=purpose, epoch=epoch)


@given(st.binary(max_size=2000))
def test_a_sealed_value_opens_at_its_place(value: bytes) -> None:
    sealed = sealer().seal("a/b", 3, value)
    assert sealer().open("a/b", 3, sealed) == value


def test_the_same_value_is_never_sealed_the_same() -> None:
    assert len({sealer().seal("a", 1, b"value").ciphertext for _ in range(100)}) == 100


@given(st.data())
def test_a_changed_bit_is_noticed(data: st.DataObject) -> None:
    sealed = sealer().seal("a/b", 1, b"the value")
    whole = bytearray(sealed.nonce + sealed.ciphertext)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecretDamagedError):
        sealer().open("a/b", 1, Sealed(bytes(whole[:12]), bytes(whole[12:])))


@pytest.mark.parametrize("length", [0, 1, 11, 15])
def test_a_truncated_value_is_noticed(length: int) -> None:
    sealed = sealer().seal("a/b", 1, b"the value")
    with pytest.raises(SecretDamagedError):
        sealer().open("a/b", 1, Sealed(sealed.nonce, sealed.ciphertext[:length]))
    with pytest.raises(SecretDamagedError):
        sealer().open("a/b", 1, Sealed(sealed.nonce[: min(length, 7)], sealed.ciphertext))


@pytest.mark.parametrize(
    ("path", "version", "other"),
    [
        ("a/c", 1, sealer()),
        ("a/b", 2, sealer()),
        ("a/b", 1, sealer(MasterKey(os.urandom(32)))),
        ("a/b", 1, sealer(store_id="another")),
        ("a/b", 1, sealer(purpose="keyring")),
        ("a/b", 1, sealer(epoch=2)),
    ],
    ids=["path", "version", "master key", "database", "purpose", "epoch"],
)
def test_a_value_does_not_open_at_another_place(path: str, version: int, other: Sealer) -> None:
    with pytest.raises(SecretDamagedError):
        other.open(path, version, sealer().seal("a/b", 1, b"the value"))


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_master_key_is_read_in_every_form_of_base64(encode) -> None:
    key = bytes(range(224, 256))
    for text in (encode(key).decode(), encode(key).decode().rstrip("="), f"  {encode(key).decode()}\n"):
        assert MasterKey.parse(text).export() == base64.b64encode(key).decode()


@pytest.mark.parametrize("text", ["", "x", "k" * 32, base64.b64encode(b"k" * 31).decode(), "é" * 44, "!" * 44])
def test_what_is_no_master_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes as base64") as error:
        MasterKey.parse(text)
    assert not text or text not in str(error.value)
