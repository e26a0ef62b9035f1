"""The binary tensor data extension of the Open Inference Protocol: tensors as bytes behind the JSON.

A tensor that says `binary_data_size` has that many of them, in the order of the tensors. BYTES elements are each a
length of four bytes, little end first, and that many bytes; FP32 elements are four bytes each.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Any

from server.errors import InvalidInput, InvalidJson
from server.input_checks import kind_of

HEADER = "Inference-Header-Content-Length"
FIELD = "inputs"
LENGTH = re.compile("[0-9]{1,15}")


def with_texts(body: bytes, json_length: str) -> bytes:
    """The body of a request as JSON alone. Raises InvalidInput and InvalidJson."""
    if not LENGTH.fullmatch(json_length) or int(json_length) > len(body):
        raise InvalidInput(HEADER, f"the header {HEADER} must be the length of the JSON, at most {len(body)}")
    head, tail = body[: int(json_length)], memoryview(body)[int(json_length) :]
    try:
        request: Any = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise InvalidJson(f"the first {json_length} bytes of the body are not JSON: {error}") from error
    if not isinstance(request, dict):
        raise InvalidInput("body", f"the JSON must be an object, not {kind_of(request)}")
    tensors = request.get(FIELD)
    for index, tensor in enumerate(tensors if isinstance(tensors, list) else []):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if type(size) is not int:
            continue
        if not 0 <= size <= len(tail):
            raise InvalidInput(
                f"{FIELD}[{index}].parameters.binary_data_size",
                f"`{FIELD}[{index}]` says that {size} bytes are its own; {len(tail)} are left",
            )
        tensor["data"] = _texts(f"{FIELD}[{index}]", bytes(tail[:size]))
        tail = tail[size:]
    if tail:
        raise InvalidInput(FIELD, f"{len(tail)} bytes of the body belong to no tensor")
    return json.dumps(request).encode()


def packed(data: Sequence[str] | Sequence[float]) -> bytes:
    """The elements of a tensor, BYTES if they are texts, else FP32."""
    parts = []
    for one in data:
        if isinstance(one, str):
            text = one.encode()
            parts.append(struct.pack("<I", len(text)) + text)
        else:
            parts.append(struct.pack("<f", one))
    return b"".join(parts)


def _texts(path: str, data: bytes) -> list[str]:
    texts: list[str] = []
    start = 0
    while start < len(data):
        stop = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or stop > len(data):
            raise InvalidInput(path, f"`{path}` ends within its element {len(texts)}; is it of type BYTES?")
        try:
            texts.append(data[start + 4 : stop].decode())
        except UnicodeDecodeError as error:
            raise InvalidInput(path, f"`{path}` holds bytes in its element {len(texts)} that are not UTF-8") from error
        start = stop
    return texts
