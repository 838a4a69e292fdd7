"""Makes the goldens of tests/io for GGUF, dequantization, safetensors and NumPy files.

Oracles: the Python packages gguf 0.19.0, safetensors 0.8.0 and numpy. Run in tests/golden:

    python make_gguf_goldens.py

Writes gguf/dequantize.safetensors (NAME.blocks U8, NAME.values F32 for every type),
gguf/small.gguf with gguf/small.safetensors (its tensors as F32), gguf/python.safetensors
(every type that the engine reads), gguf/f8.npy and gguf/f4_v2.npy.
"""

import pathlib

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).parent / "gguf"
TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
# Byte offsets of the f16 scales of a block; the rest of a block may be any bytes.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name, rng, count):
    """Random bytes with finite scales: normal ones, and one subnormal, zero and negative each."""
    _, size = GGML_QUANT_SIZES[Type[name]]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in SCALES.get(name, []):
        scales = (rng.standard_normal(count) * 2.0 ** rng.integers(-8, 4, count)).astype(np.float16)
        scales[:3] = np.array([6e-8 * 9, 0.0, -1.5])[:count]
        blocks[:, offset:offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def every_half():
    """All 65536 half-precision numbers except NaN, whose payload numpy may change."""
    bits = np.arange(65536, dtype=np.uint16)
    return bits[~np.isnan(bits.view(np.float16))]


def make_dequantize(rng):
    tensors = {}
    for name in TYPES:
        if name == "F16":
            bits = every_half()[::17].copy()
            tensors["F16.blocks"] = bits.view(np.uint8)
            tensors["F16.values"] = bits.view(np.float16).astype(np.float32)
            continue
        elements, _ = GGML_QUANT_SIZES[Type[name]]
        blocks = random_blocks(name, rng, 512 if elements == 1 else max(6, 256 // elements))
        if name == "BF16":
            blocks[:, 1] &= 0xBF  # no infinity, no NaN
        values = gguf.quants.dequantize(blocks, Type[name]).astype(np.float32)
        tensors[name + ".blocks"] = blocks.reshape(-1)
        tensors[name + ".values"] = values.reshape(-1)
    save_file(tensors, OUT / "dequantize.safetensors")


def make_small(rng):
    writer = gguf.GGUFWriter(OUT / "small.gguf", "llama")
    writer.add_block_count(2)
    writer.add_uint64("test.u64", 2 ** 40)
    writer.add_int32("test.i32", -7)
    writer.add_uint8("test.u8", 200)
    writer.add_float32("test.f32", 0.1)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_string("test.text", "Wärme\n")
    writer.add_array("test.strings", ["a", "", "ß"])
    writer.add_array("test.floats", [0.5, -1.25])
    writer.add_array("test.ints", [1, -2, 3])
    expected = {}
    for name in ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16"]:
        values = rng.standard_normal((3, 64)).astype(np.float32)
        packed = gguf.quants.quantize(values, Type[name])
        writer.add_tensor(f"blk.0.{name.lower()}.weight", packed, raw_dtype=Type[name])
        expected[f"blk.0.{name.lower()}.weight"] = (
            gguf.quants.dequantize(packed, Type[name]).astype(np.float32).reshape(3, 64))
    blocks = random_blocks("Q6_K", rng, 2)
    writer.add_tensor("blk.1.q6_k.weight", blocks, raw_dtype=Type.Q6_K)
    expected["blk.1.q6_k.weight"] = gguf.quants.dequantize(blocks, Type.Q6_K).reshape(2, 256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / "small.safetensors")


def make_python(rng):
    numbers = np.array([[1.0, -2.5, 0.1], [3e-8, 65504.0, -0.0]])
    tensors = {
        "f64": numbers, "f32": numbers.astype(np.float32), "f16": numbers.astype(np.float16),
        "i64": np.array([-1, 2 ** 40]), "i32": np.array([[7]], dtype=np.int32),
        "i8": np.array([-128, 127, 0], dtype=np.int8), "u8": np.array([255], dtype=np.uint8),
        "bool": np.array([True, False]), "scalar": np.array(4.0, dtype=np.float32),
        "empty": np.zeros((2, 0), dtype=np.float32), "name \"with\" quotes/ü": numbers[0],
    }
    save_file(tensors, OUT / "python.safetensors", metadata={"format": "pt"})


def main():
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(20260101)
    make_dequantize(rng)
    make_small(rng)
    make_python(rng)
    np.save(OUT / "f8.npy", np.array([[0.1, -2.0, 3e-50], [1e39, 5.0, 6.0]]))
    with open(OUT / "f4_v2.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(5, dtype=np.float32), version=(2, 0))


if __name__ == "__main__":
    main()
