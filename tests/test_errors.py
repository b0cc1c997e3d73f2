"""Messages keep the passwords in addresses to themselves."""

import pickle

import pytest

from retinanet.errors import UserError


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://me:secret@host/a", "rtsp://host/a"),
        ("RTSP://me:sec/ret#x@host/a", "RTSP://host/a"),
        ("rtsp:/me:secret@host", "rtsp:/host"),
        ("s3://KEY:secret@bucket/x.jpg", "s3://bucket/x.jpg"),
        ("http://secret@host/x", "http://host/x"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("C:/me@home.jpg", "C:/me@home.jpg"),
        ("write to me@host", "write to me@host"),
    ],
)
def test_passwords_in_addresses_are_left_out(address, shown):
    error = UserError(f"no video at {address}: look again")
    assert str(error) == f"no video at {shown}: look again"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
