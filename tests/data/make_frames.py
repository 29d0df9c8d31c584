"""Make the golden frames of format version 1: run once, by hand, when the format gets a version.

python -m tests.data.make_frames
"""

from pathlib import Path

import numpy as np

from smlt._core import codec

FOLDER = Path(__file__).parent / "frames_v1"


def arrays() -> dict[str, np.ndarray]:
    """Return the content of the golden frames, by file name. No random numbers: bits for ever."""
    ramp = np.arange(20_000, dtype=np.float32)
    sparse = np.where(ramp % 37 == 0, ramp / 7, np.float32(0)).astype(np.float32)
    special = np.array([-0.0, np.inf, -np.inf, 1e-45, 0.1], np.float32)
    return {
        "raw_fp32": (np.float32(1) / (ramp[:500] + 1)).reshape(5, 100),
        "raw_special": special,
        "sparse_fp32": sparse,
        "sparse_fp16": sparse.astype(np.float16),
        "zero_fp64": np.zeros(10_000),
        "repeats_int64": np.tile(np.arange(1, 17), 1000),
        "bool": ramp[:100] % 3 == 0,
        "empty": np.zeros((3, 0), np.float32),
        "scalar": np.array(42, np.int32),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    content = arrays()
    for name, array in content.items():
        frame = b"".join(codec.encode(array, flags=5, weight=0.25, meta=b"golden"))
        (FOLDER / f"{name}.frame").write_bytes(frame)
    bits = (content["raw_fp32"].view(np.uint32) >> 16).astype(np.uint16)
    (FOLDER / "raw_bf16.frame").write_bytes(b"".join(codec.encode(bits, wire_dtype="bf16")))
    (FOLDER / "many.frame").write_bytes(b"".join(codec.encode_tensors(content)))


if __name__ == "__main__":
    main()
