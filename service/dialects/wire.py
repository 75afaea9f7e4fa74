"""Counts the messages in protobuf's wire format before they are parsed: an empty one takes two bytes, then hundreds.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from service.errors import InvalidRequest

MAX_MESSAGES = 200_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100


def check_size(raw: bytes, kind: Descriptor) -> None:
    """Return if *raw*, a message of *kind*, holds at most `MAX_MESSAGES` others.

    Raises:
        InvalidRequest: it holds more. DecodeError: it is no such message.
    """
    left = MAX_MESSAGES
    stack = [(0, len(raw), kind)]
    while stack:
        at, end, descriptor = stack.pop()
        while at < end:
            tag, at = _varint(raw, at, end)
            wire = tag & 7
            if wire == _VARINT:
                _, at = _varint(raw, at, end)
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            elif wire == _BYTES:
                size, at = _varint(raw, at, end)
                field = descriptor.fields_by_number.get(tag >> 3)
                left -= 1
                if left < 0:
                    message = f"The export holds more than {MAX_MESSAGES} spans, attributes and other values."
                    raise InvalidRequest(message)
                if field is not None and field.message_type is not None and size:
                    if len(stack) >= _MAX_DEPTH:
                        message = "nested too deeply"
                        raise DecodeError(message)
                    if at + size > end:
                        message = "truncated"
                        raise DecodeError(message)
                    stack.append((at + size, end, descriptor))
                    end, descriptor = at + size, field.message_type
                    continue
                at += size
            else:
                message = "an unknown wire type"
                raise DecodeError(message)
        if at != end:
            message = "truncated"
            raise DecodeError(message)


def _varint(raw: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            break
    message = "a malformed number"
    raise DecodeError(message)
