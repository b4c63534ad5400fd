"""Makes `every-type.gguf` and `every-type.f32`, the oracle of crates/attar-tensor/tests/gguf.rs.

The first holds a tensor of every type that attar reads, one of a type that it does not, and metadata of every value
type. The second holds what the `gguf` package says the tensors mean: little-endian f32, in the order of their names.

Made with Python 3.11, numpy 2.4.6 and gguf 0.19.0: `python make.py`.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFValueType as ValueType, GGUFWriter, dequantize

HERE = Path(__file__).parent

# Where a block keeps its f16 scales. All its other bytes may be anything.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}

PLAIN = {
    Type.F32: np.float32,
    Type.F16: np.float16,
    Type.F64: np.float64,
    Type.I8: np.int8,
    Type.I16: np.int16,
    Type.I32: np.int32,
    Type.I64: np.int64,
}


def blocks(random, kind, rows, columns):
    values, size = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = random.normal(0, 0.02, data.shape[:2]).astype(np.float16)
        data[..., at : at + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def plain(random, dtype, shape):
    if np.issubdtype(dtype, np.floating):
        return random.normal(0, 1, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def add_tensors(writer, random):
    """Adds a tensor of every type; returns what each that can be read means."""
    meaning = {}
    for kind, dtype in PLAIN.items():
        tensor = plain(random, dtype, (3, 5))
        writer.add_tensor(f"{kind.name.lower()}.weight", tensor)
        meaning[f"{kind.name.lower()}.weight"] = tensor.astype(np.float32)
    for kind, scales in SCALES.items():
        columns = 2 * GGML_QUANT_SIZES[kind][0]
        data = blocks(random, kind, 3, columns)
        writer.add_tensor(f"{kind.name.lower()}.weight", data, raw_dtype=kind)
        meaning[f"{kind.name.lower()}.weight"] = dequantize(data, kind)
    upper = (random.normal(0, 1, (3, 5)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("bf16.weight", upper.view(np.uint8), raw_dtype=Type.BF16)
    meaning["bf16.weight"] = dequantize(upper.view(np.uint8), Type.BF16)
    for name, shape in {"bias": (7,), "experts": (2, 3, 4), "convolution": (2, 3, 4, 5)}.items():
        meaning[name] = plain(random, np.float32, shape)
        writer.add_tensor(name, meaning[name])
    writer.add_tensor("mxfp4.weight", random.integers(0, 256, (2, 17), dtype=np.uint8), raw_dtype=Type.MXFP4)
    return meaning


def add_metadata(writer):
    writer.add_custom_alignment(64)
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_float32("test.f32", 0.1)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.text", "عطر")
    writer.add_array("test.texts", ["a", "", "bc"])
    writer.add_array("test.floats", [0.5, -1.0])
    writer.add_array("test.bools", [True, False])
    writer.add_key_value("test.bytes", [1, 2, 255], ValueType.ARRAY, ValueType.UINT8)
    writer.add_array("test.nested", [[1, -2], [3]])


def main():
    random = np.random.default_rng(0)
    writer = GGUFWriter(HERE / "every-type.gguf", "test")
    add_metadata(writer)
    meaning = add_tensors(writer, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ordered = [meaning[name].astype("<f4").ravel() for name in sorted(meaning)]
    np.concatenate(ordered).tofile(HERE / "every-type.f32")


main()
