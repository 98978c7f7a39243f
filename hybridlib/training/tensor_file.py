"""A safetensors file written tensor by tensor and with a checksum: free of code when loaded, and never whole in memory.

The library's own writer takes all tensors in memory at once, which would double a run's peak at every checkpoint.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybridlib.training.store import Kept

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16",
          torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
NO_SHA256 = "0" * 64  # stands in the file while its checksum is taken
HEADER_BYTES = 100_000_000  # no sound file has a longer one: safetensors' own limit
PIECE_BYTES = 1 << 24


class Damaged(ValueError):
    """A file that is not as it was written; the message names it."""


def size_bytes(tensors: dict[str, Tensor | Kept]) -> int:
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())


def write(path: Path, tensors: dict[str, Tensor | Kept], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON values; one that is kept elsewhere is read when its turn comes. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": dict(sha256=NO_SHA256, facts=json.dumps(facts))}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = dict(dtype=DTYPES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with path.open("wb", buffering=0) as out:
        digest = hashlib.sha256()
        for piece in (len(text).to_bytes(8, "little"), text):
            digest.update(piece)
            out.write(piece)
        for tensor in tensors.values():
            whole = tensor.read() if isinstance(tensor, Kept) else tensor.detach().cpu()
            data = memoryview(whole.contiguous().view(-1).view(torch.uint8).numpy())
            digest.update(data)
            while len(data):  # one call writes no more than 2 GiB
                data = data[out.write(data) :]
        out.seek(8 + text.index(NO_SHA256.encode()))
        out.write(digest.hexdigest().encode())


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the host, and the facts. Raises `Damaged` for a file that its checksum does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("sha256") != sha256(path, about.get("sha256", "").encode()):
                raise Damaged(f"{path} is damaged: its content does not match its checksum")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(about["facts"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{path} is damaged: {error}") from None


def sha256(path: Path, known: bytes) -> str:
    """Checksum of a file's content with `known`, the checksum that stands in its header, blotted out."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), HEADER_BYTES))
        digest.update(start + (header.replace(known, NO_SHA256.encode(), 1) if known else header))
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
