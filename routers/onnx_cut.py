"""The beginning of an ONNX graph as a graph of its own, without the ONNX library, which only training needs.

An ONNX file is one Protocol Buffers message. The fields read here are ModelProto.graph (7), GraphProto.node (1),
.initializer (5) and .output (12), NodeProto.input (1) and .output (2), and TensorProto.name (8).
"""

from collections.abc import Iterator


def cut(model: bytes, output: str) -> bytes:
    """`model` up to the node that gives `output`, a tensor of float32 that becomes the only output.

    Nodes stand in an order in which each follows what it needs, by the rules of ONNX.

    Raises:
        ValueError: the graph has no such value, or these bytes are no ONNX model.
    """
    whole = memoryview(model)
    kept: list[bytes | memoryview] = []
    graphs = 0
    for number, field, content in _fields(whole):
        graphs += number == 7
        kept += _delimited(7, _cut_graph(content, output)) if number == 7 else [field]
    if graphs != 1:
        raise ValueError("there is no graph")
    return b"".join(kept)


def _cut_graph(graph: memoryview, output: str) -> list[bytes | memoryview]:
    kept: list[bytes | memoryview] = []
    needed: set[bytes] = set()
    found = False
    for number, field, content in _fields(graph):
        if number == 1 and not found:
            kept.append(field)
            names = [(part, bytes(name)) for part, _, name in _fields(content) if part in (1, 2)]
            needed |= {name for part, name in names if part == 1}
            found = (2, output.encode()) in names
    if not found:
        raise ValueError(f"the graph gives no {output}")
    for number, field, content in _fields(graph):
        name = next((bytes(text) for part, _, text in _fields(content) if part == 8), b"") if number == 5 else b""
        if number not in (1, 5, 12) or name in needed:
            kept.append(field)
    # Without a shape, which ONNX Runtime infers.
    float32 = b"".join(_delimited(1, [b"\x08\x01"]))
    kept += _delimited(12, [*_delimited(1, [output.encode()]), *_delimited(2, [float32])])
    return kept


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, whole encoding and content of each field in turn."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                _, end = _varint(message, at)
            case 1:
                end = at + 8
            case 2:
                size, at = _varint(message, at)
                end = at + size
            case 5:
                end = at + 4
            case kind:
                raise ValueError(f"no field is of kind {kind}")
        if end > len(message):
            raise ValueError("a field is cut short")
        yield key >> 3, message[start:end], message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("a number is cut short")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a number has no end")


def _delimited(number: int, content: list[bytes | memoryview]) -> list[bytes | memoryview]:
    size = sum(map(len, content))
    prefix = bytearray([number << 3 | 2])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return [bytes([*prefix, size]), *content]
