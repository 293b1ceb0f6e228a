"""A shape goes in; a random float16 checkpoint of it comes out, streamed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from peer_shapes import Shape

_PAGE_VALUES = (4 << 20) + 7  # odd, so that no two tensors are cut from it alike
_PIECE_VALUES = 1 << 20


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """A float16 safetensors file and its config; a few megabytes of memory are enough."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    header, offset = {}, 0
    for name, dims, _ in shape.tensors():
        end = offset + 2 * math.prod(dims)
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    page = np.random.default_rng(0).standard_normal(_PAGE_VALUES, dtype=np.float32)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        begun = 0
        for _, dims, fill in shape.tensors():
            size = math.prod(dims)
            for done in range(0, size, _PIECE_VALUES):
                count = min(_PIECE_VALUES, size - done)
                at = (begun + done) % _PAGE_VALUES
                normal = page[at : at + count]
                if len(normal) < count:
                    normal = np.concatenate((normal, page[: count - len(normal)]))
                file.write(np.asarray(fill(normal)).astype(np.float16).tobytes())
            begun += size
