#!/usr/bin/env python3
"""Writes test/fixtures/dequantize/<type>.bin: random stored blocks and what the `gguf` package decodes them to.

pip install gguf numpy; python tools/dequantize-oracle.py
A file holds int32 rows, int32 columns, the stored rows, then rows * columns float32, all little endian.
"""
import pathlib

import gguf
import numpy as np

ROWS, COLUMNS = 3, 512
# Byte offsets of the f16 fields of a block: random bits there could be NaN or infinity, which no file holds.
HALF_FIELDS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
}


def stored_rows(name, random):
    if name in ("F32", "F16"):
        return random.standard_normal((ROWS, COLUMNS)).astype("<f4" if name == "F32" else "<f2").view(np.uint8)
    if name == "BF16":
        return (random.standard_normal((ROWS, COLUMNS)).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    for offset in HALF_FIELDS[name]:
        halves = (random.standard_normal((len(blocks), 1)) * 0.02).astype("<f2")
        halves[0] = 3e-7  # a subnormal f16
        blocks[:, offset:offset + 2] = halves.view(np.uint8)
    return blocks.reshape(ROWS, -1)


def main():
    folder = pathlib.Path(__file__).parent.parent / "test" / "fixtures" / "dequantize"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["F32", "F16", "BF16", *HALF_FIELDS]:
        stored = stored_rows(name, np.random.default_rng(list(name.encode())))
        expected = gguf.dequantize(stored, gguf.GGMLQuantizationType[name]).astype("<f4")
        assert expected.shape == (ROWS, COLUMNS) and np.isfinite(expected).all()
        header = np.array([ROWS, COLUMNS], dtype="<i4").tobytes()
        (folder / f"{name.lower()}.bin").write_bytes(header + stored.tobytes() + expected.tobytes())


if __name__ == "__main__":
    main()
