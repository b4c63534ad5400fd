"""Writes minifloat.txt: what ml_dtypes makes of numbers. A line: format, the number's bits, its code, the code's value's bits.

    python crates/attar-tensor/tests/oracle/minifloat.py > crates/attar-tensor/tests/oracle/minifloat.txt

Numbers are every value of a format, every middle between two, what lies just beside, and random ones in between.
"""

import ml_dtypes
import numpy as np

FORMATS = [
    ("e2m1", ml_dtypes.float4_e2m1fn, 6.0, 16),
    ("e4m3", ml_dtypes.float8_e4m3fn, 448.0, 256),
    ("e5m2", ml_dtypes.float8_e5m2, 57344.0, 256),
    ("e8m0", ml_dtypes.float8_e8m0fnu, 2.0**127, 255),
]


def main():
    rng = np.random.default_rng(0)
    for name, dtype, largest, codes in FORMATS:
        values = np.arange(codes, dtype=np.uint8).view(dtype).astype(np.float32)
        values = np.unique(values[np.isfinite(values)])
        middles = (values[1:].astype(np.float64) + values[:-1]).astype(np.float64) / 2
        middles = middles.astype(np.float32)
        beside = [np.nextafter(middles, np.float32(sign * np.inf), dtype=np.float32) for sign in (-1, 1)]
        span = np.exp2(rng.uniform(np.log2(values[values > 0].min()) - 1, np.log2(largest), 200))
        span *= 1 if name == "e8m0" else rng.choice([-1, 1], 200)
        numbers = np.concatenate([values, middles, *beside, span.astype(np.float32)])
        tiny = np.float32(2.0**-126)
        numbers = numbers[np.abs(numbers) <= largest]
        numbers = numbers[numbers >= tiny] if name == "e8m0" else numbers
        rounded = numbers.astype(dtype)
        for number, code, value in zip(numbers, rounded.view(np.uint8), rounded.astype(np.float32)):
            print(name, f"{number.view(np.uint32):08x}", code, f"{value.view(np.uint32):08x}")


main()
