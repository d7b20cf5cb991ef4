"""A child may have been taken over by the picture that it decodes: whatever it sends is a message or refused."""

from __future__ import annotations

import contextlib

import msgpack
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzzing import examples
from worker.renderer.protocol import HEADER, MAX_FRAME, BadFrame, length_of, unpack

KEYS = st.text(max_size=5) | st.binary(max_size=5) | st.integers(-3, 3) | st.none()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
    | st.builds(msgpack.Timestamp, st.integers(-(2**40), 2**40), st.integers(0, 10**9 - 1))
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
PACKED = VALUES.map(msgpack.packb)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with some of its bytes changed, taken out or put in."""
    body = bytearray(draw(st.dictionaries(KEYS, VALUES, max_size=5).map(msgpack.packb)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(body)


@examples(500)
@given(st.binary(max_size=200) | PACKED | damaged())
@example(b"\x91" * 60_000)
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc7\x00\xff")
@example(b"\x81\x90\x00")
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadFrame):
        message = unpack(body)

        assert isinstance(message, dict)
        assert all(isinstance(key, str) for key in message)


@examples(100)
@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_any_length_is_one_that_we_can_hold_or_refused(header: bytes) -> None:
    with contextlib.suppress(BadFrame):
        assert 0 < length_of(header) <= MAX_FRAME
