"""The protobuf wire format: a message's fields, one after another, without a protobuf library.

Takes bytes; gives numbers of fields and what they hold. Does not know what a field means. Refuses
whatever two readers could read differently: what was checked here is what an engine will read.
Imports nothing of ours.
"""

from collections.abc import Iterator

__all__ = ["fields", "numbers"]

_MOST_TAG = (1 << 32) - 1  # others keep the low 32 bits of a longer one, and read another field
_MOST_LENGTH = (1 << 31) - 1


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and byte strings; fields of a fixed width are skipped. Raises ValueError or
    IndexError for bytes that are no message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind, number = tag & 7, tag >> 3
        if not number or tag > _MOST_TAG:
            raise ValueError(f"a field has the number {number}")
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if length > _MOST_LENGTH or at + length > len(data):
                raise ValueError("it is cut short")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > len(data):
                raise ValueError("it is cut short")
        else:
            raise ValueError(f"wire type {kind}")


def numbers(data: memoryview) -> Iterator[int]:
    """Of a repeated field that is packed into one byte string. Raises as `fields` does."""
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
