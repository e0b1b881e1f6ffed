"""Amazon's event-stream encoding (application/vnd.amazon.eventstream), as much of it as a response stream needs.

A message is: total bytes, header bytes, CRC-32 of these eight bytes, headers, payload, CRC-32 of all that; numbers are big-endian.
A header is: length of name, name, type 7 (string), length of value in two bytes, value.
"""

import json
import struct
import zlib

STRING_HEADER = 7


def payload_part(data: bytes) -> bytes:
    return _message(
        {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}, data
    )


def exception(kind: str, **members: str) -> bytes:
    """A modelled error after the stream has begun: botocore raises it from the iteration."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return _message(headers, json.dumps(members).encode())


def _message(headers: dict[str, str], payload: bytes) -> bytes:
    encoded = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", 4 + 4 + 4 + len(encoded) + len(payload) + 4, len(encoded))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", STRING_HEADER, len(value)) + value.encode()
