"""Whatever bytes a child sends, they are a message, or refused as none."""

from __future__ import annotations

import random

import pytest

from worker.renderer.protocol import HEADER, MAX_FRAME, BadFrame, length_of, pack, unpack


def test_a_message_comes_back_as_it_was() -> None:
    message = {"size": [1, 2], "format": "JPEG", "stages": {"decode": 1.5}}

    frame = pack(message)

    assert length_of(frame[: HEADER.size]) == len(frame) - HEADER.size
    assert unpack(frame[HEADER.size :]) == message


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0xFFFFFFFF])
def test_lengths_that_no_message_has_are_refused(length: int) -> None:
    with pytest.raises(BadFrame):
        length_of(HEADER.pack(length))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        b"\x81\x01\x02",
        b"\x91\x01",
        b"\xc0",
        b"\x81\xa1x",
        b"\x81\xa1\xff\x01",
        b"\x81\x90\x01",
        b"\x91" * 60_000 + b"\x90",
        b"\xdf\xff\xff\xff\xff",
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
    ],
)
def test_what_is_no_map_of_names_is_refused(body: bytes) -> None:
    with pytest.raises(BadFrame):
        unpack(body)


def test_noise_is_a_message_or_refused() -> None:
    noise = random.Random(1)
    for _ in range(5000):
        body = b"\x82" + noise.randbytes(noise.randrange(1, 40))
        try:
            assert isinstance(unpack(body), dict)
        except BadFrame:
            continue
