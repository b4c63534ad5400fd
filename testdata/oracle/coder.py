"""Bits per weight that Vela's coder takes for the integers of a checkpoint folder of attar that have a scale per row.

    python coder.py FOLDER

Made with ethos-u-vela 5.2.0 and numpy 2.4.6. Weights are coded in the order of the file; Vela reorders them for a device, which changes little.
"""

import json
import sys
from pathlib import Path

import reader
from ethosu import mlw_codec

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    manifest = json.loads((folder / "attar.json").read_text())
    stored = {name: tensor for shard in manifest["shards"] for name, tensor in reader.safetensors(folder / shard).items()}
    bits = weights = 0
    for name, tensor in manifest["quantized"].items():
        (rows, columns), (grid, granularity, *_) = tensor["dims"], tensor["scheme"].split("/")
        assert grid.startswith("int") and granularity == "row", tensor["scheme"]
        width, middle = reader.GRIDS[grid]
        codes = reader.unpacked(stored[f"{name}.codes"], rows, columns, width).astype(int) - middle
        bits += 8 * len(mlw_codec.encode(codes.flatten().tolist()))
        weights += codes.size
    print(bits / weights)
