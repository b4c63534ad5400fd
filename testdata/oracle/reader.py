"""Reads a checkpoint folder of attar: every weight by its canonical name, in float32. Written from `docs/formats.md`, and strict about it.

    python reader.py FOLDER                # name, shape, encoding; sum and sum of squares in float64, and a digest of the bytes
    python reader.py FOLDER --npz FILE     # the same, and the arrays in a file of numpy

Made with numpy 2.4.6; needs nothing else.
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PLAIN = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "<i1", "u8": "<u1"}


def minifloat(exponent: int, mantissa: int) -> np.ndarray:
    """What each code of a float with so many bits of exponent and mantissa means."""
    code = np.arange(2 ** (1 + exponent + mantissa))
    bias, e, m = 2 ** (exponent - 1) - 1, code >> mantissa & 2**exponent - 1, code & 2**mantissa - 1
    magnitude = np.where(e == 0, np.ldexp(m, 1 - bias - mantissa), np.ldexp(2**mantissa + m, e - bias - mantissa))
    return np.where(code >> exponent + mantissa, -magnitude, magnitude).astype("f4")


E2M1, E4M3, E5M2 = minifloat(2, 1), minifloat(4, 3), minifloat(5, 2)
NF4 = """-1 -.6961928 -.52507305 -.3949175 -.28444138 -.18477343 -.091050036 0
    .0795803 .1609302 .2461123 .33791524 .44070983 .562617 .72295684 1"""
GAUSS4 = "-1 -.7849 -.6313 -.5005 -.3861 -.2825 -.1838 -.0877 .0061 .0981 .1906 .2883 .3952 .5164 .6682 .8838"
GAUSS3 = "-1 -.6227 -.37 -.1598 .0349 .2367 .4672 .7805"
# Bits of a code, and the value of each; an integer where all groups have a middle, nothing where they have a table.
GRIDS = {f"int{bits}": (bits, 2 ** (bits - 1)) for bits in (8, 6, 5, 4, 3, 2)}
GRIDS |= {f"lut{bits}": (bits, None) for bits in (4, 3, 2, 1)}
GRIDS |= {"mxfp4": (4, E2M1), "nvfp4": (4, E2M1), "fp8_e4m3": (8, E4M3), "fp8_e5m2": (8, E5M2)}
GRIDS |= {
    name: (bits, np.array(values.split(), "f4"))
    for name, bits, values in [("ternary", 2, "-1 0 1"), ("nf4", 4, NF4), ("gauss4", 4, GAUSS4), ("gauss3", 3, GAUSS3)]
}
# Scales that are codes: what each means, and the format and rows of super scales.
E8M0 = np.ldexp(1.0, np.arange(255) - 127)
CODED = {f"int{bits}": (bits, np.arange(2**bits) - 2.0 ** (bits - 1), "F16") for bits in (8, 6, 4)}
CODED |= {"e8m0": (8, E8M0, None), "e4m3": (8, E4M3, "F32")}
SCHEME = re.compile(r"(\w+)/(tensor|row|g[1-9]\d*)(/asymmetric)?(?:/(f16|bf16|f32|int8|int6|int4|e8m0|e4m3))?(/positive)?(/short)?")
WEIGHT = re.compile(r'weight\("([^"\\]*)": \[([\d, ]*)\] ([\w/]+)(?: = tensor\("([^"\\]*)"\))?\)')


@dataclass
class Stored:
    """A tensor of a file: its format there, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self, dtype: str, *shape: int) -> np.ndarray:
        """Its numbers, which must be of that format and shape. BF16 becomes float32."""
        assert (self.dtype, self.shape) == (dtype, shape), f"{self.dtype} {self.shape} is not {dtype} {shape}"
        found = np.frombuffer(self.data, PLAIN[dtype.lower()]).reshape(shape)
        return (found.astype("u4") << 16).view("f4") if dtype == "BF16" else found


def safetensors(path: Path) -> dict[str, Stored]:
    file = path.read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header.pop("__metadata__", None)
    at = {name: [start + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    return {name: Stored(entry["dtype"], tuple(entry["shape"]), file[slice(*at[name])]) for name, entry in header.items()}


def unpacked(part: Stored, rows: int, count: int, bits: int) -> np.ndarray:
    """Codes `[rows, count]` from a bit stream for each row."""
    packed = part.array("U8", rows, -(-count * bits // 8))
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    assert not stream[:, count * bits :].any(), "a row has bits behind its codes"
    return np.packbits(stream[:, : count * bits].reshape(rows, count, bits), axis=2, bitorder="little")[:, :, 0]


def trits(part: Stored, rows: int, count: int) -> np.ndarray:
    """Codes `[rows, count]` below 3, five to a byte."""
    digits = part.array("U8", rows, -(-count // 5))[:, :, None] // 3 ** np.arange(5)
    assert digits.max(initial=0) < 3**5 and not (digits % 3).reshape(rows, -1)[:, count:].any(), "a row has digits behind its codes"
    return (digits % 3).reshape(rows, -1)[:, :count]


def dequantized(name: str, text: str, dims: list[int], stored: dict[str, Stored]) -> np.ndarray:
    """The weights `[rows, columns]` of a quantized tensor. Takes its parts out of `stored`."""
    grid, granularity, asymmetric, scale, *_ = SCHEME.fullmatch(text).groups()
    (rows, columns), (bits, values) = dims, GRIDS[grid]
    scale = scale or {"mxfp4": "e8m0", "nvfp4": "e4m3"}.get(grid, "f16")
    size = int(granularity[1:]) if granularity[0] == "g" else columns
    assert columns % size == 0 or text.endswith("/short"), f"{text} does not divide {columns}"
    scale_rows, groups = 1 if granularity == "tensor" else rows, -(-columns // size)
    group = np.arange(columns) // size

    def part(kind: str) -> Stored:
        return stored.pop(f"{name}.{kind}")

    codes = trits(part("codes"), rows, columns) if grid == "ternary" else unpacked(part("codes"), rows, columns, bits)
    if values is None:
        tables = part("tables").array(scale.upper(), scale_rows, groups * 2**bits).astype("f4").reshape(scale_rows, groups, -1)
        assert (np.diff(tables) >= 0).all(), "a table is not ascending"
        return tables[np.arange(rows)[:, None] % scale_rows, group, codes]
    if scale in CODED:
        width, meaning, super_dtype = CODED[scale]
        scales = meaning.astype("f4")[unpacked(part("scales"), scale_rows, groups, width)]
        if super_dtype:
            scales = part("supers").array(super_dtype, rows if super_dtype == "F16" else 1, 1).astype("f4") * scales
    else:
        scales = part("scales").array(scale.upper(), scale_rows, groups).astype("f4")
    assert "/positive" not in text or (scales >= 0).all(), "a scale is negative"
    zeros = unpacked(part("zeros"), scale_rows, groups, bits)[:, group] if asymmetric else values
    level = codes.astype("f4") - zeros if isinstance(values, int) else values[codes]
    return level * scales[:, group]


def read(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Encoding and numbers of every weight, in the order of the graph."""
    manifest = json.loads((folder / "attar.json").read_text())
    assert manifest["attar"] == 1, f"version {manifest['attar']} of the format"
    stored = {name: tensor for shard in manifest["shards"] for name, tensor in safetensors(folder / shard).items()}
    tensors = {name: (q["scheme"], dequantized(name, q["scheme"], q["dims"], stored)) for name, q in manifest["quantized"].items()}
    for name, tensor in stored.items():
        tensors[name] = (tensor.dtype.lower(), tensor.array(tensor.dtype, *tensor.shape).astype("f4"))
    graph, weights = (folder / "graph.ir").read_text(), {}
    for name, dims, encoding, source in WEIGHT.findall(graph):
        found, array = tensors[source or name]
        assert found == encoding, f"{name} is {found} in the file and {encoding} in the graph"
        weights[name] = (encoding, array.reshape([int(dim) for dim in dims.split(",")]))
    assert len(WEIGHT.findall(graph)) == graph.count("weight("), "a weight is no single stored tensor"
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--npz", type=Path, help="file to write the arrays to")
    arguments = parser.parse_args()
    read_weights = read(arguments.folder)
    for name, (encoding, array) in read_weights.items():
        exact = array.astype("f8")
        digest = hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()[:16]
        print(name, list(array.shape), encoding, float(exact.sum()), float((exact**2).sum()), digest)
    if arguments.npz:
        np.savez(arguments.npz, **{name: array for name, (_, array) in read_weights.items()})
