"""Makes `quantized/*`: the matrices of one tiny Llama in every quantized format that is read, each in a folder as its tool writes it,
and `dense.safetensors` with the numbers that the codes stand for, by name.

compressed-tensors: codes are packed with `pack_to_int32` and decoded by `unpack_from_int32` and `_dequantize` of that library.
FP8 in blocks: decoded by `Fp8Dequantize._dequantize_one` of transformers. GPTQ and AWQ: no library installs without a GPU, so
codes are packed and decoded by the loops below, written from the layouts that AutoGPTQ and AutoAWQ document: one code at a time,
no code shared with attar.

Made with torch 2.15.0 (CPU), compressed-tensors 0.20.0, transformers 5.24.0 and safetensors 0.8.0: `python quantized.py`.
"""

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization.lifecycle.forward_helpers import _dequantize
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

OUT = Path(__file__).parent.parent / "quantized"
HIDDEN, INNER, VOCABULARY = 32, 64, 48
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "max_position_embeddings": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
}
SHAPES = {f"self_attn.{n}_proj": (HIDDEN, HIDDEN) for n in "qkvo"}
SHAPES |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}


def ints(generator, low, high, shape):
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64)


def floats(generator, shape, dtype):
    return (torch.rand(shape, generator=generator) * 0.02 + 0.001).to(dtype)


def signed(word):
    return word - (1 << 32) if word >= 1 << 31 else word


def stream(values, bits):
    """A list of codes as 32-bit words, lowest bits first."""
    whole = 0
    for i, value in enumerate(values):
        whole |= value << (i * bits)
    return [signed(whole >> (32 * i) & 0xFFFFFFFF) for i in range(len(values) * bits // 32)]


def gptq(g, rows, columns, bits, group, v2=False, act=False):
    size = columns if group == -1 else group
    groups = columns // size
    codes = ints(g, 0, 1 << bits, (rows, columns)).tolist()
    zeros = ints(g, 0, 1 << bits, (groups, rows)).tolist()
    scales = floats(g, (groups, rows), torch.float16)
    index = [c // size for c in range(columns)]
    if act:
        index = [index[p] for p in torch.randperm(columns, generator=g).tolist()]
    kept = [[z if v2 else (z - 1) % (1 << bits) for z in row] for row in zeros]
    parts = {
        "qweight": torch.tensor([stream(row, bits) for row in codes], dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor([stream(row, bits) for row in kept], dtype=torch.int32),
        "scales": scales, "g_idx": torch.tensor(index, dtype=torch.int32),
    }
    dense = torch.empty(rows, columns, dtype=torch.float16)
    for r in range(rows):
        for c in range(columns):
            dense[r, c] = scales[index[c], r] * (codes[r][c] - zeros[index[c]][r])
    return parts, dense


def awq(g, rows, columns, group):
    codes, zeros = ints(g, 0, 16, (columns, rows)).tolist(), ints(g, 0, 16, (columns // group, rows)).tolist()
    scales = floats(g, (columns // group, rows), torch.float16)

    def pack(lines):
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        word = lambda eight: signed(sum(eight[of] << (4 * i) for i, of in enumerate(order)))
        return torch.tensor([[word(line[i:i + 8]) for i in range(0, rows, 8)] for line in lines], dtype=torch.int32)

    dense = torch.empty(rows, columns, dtype=torch.float16)
    for r in range(rows):
        for c in range(columns):
            dense[r, c] = (codes[c][r] - zeros[c // group][r]) * scales[c // group, r]
    return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}, dense


def fp8(g, rows, columns, block):
    weight = (torch.randn(rows, columns, generator=g) * 50).to(torch.float8_e4m3fn)
    scale = floats(g, (rows // block, columns // block), torch.float32)
    dense = Fp8Dequantize._dequantize_one(Fp8Dequantize(None), weight, scale, torch.float32)
    return {"weight": weight, "weight_scale_inv": scale}, dense


def spread(scale, rows, columns):
    return scale.repeat_interleave(rows // scale.shape[0], 0).repeat_interleave(columns // scale.shape[1], 1)


def packed(g, rows, columns, bits, group, symmetric, act=False):
    half, groups = 1 << (bits - 1), columns // group
    codes = ints(g, -half, half, (rows, columns)).to(torch.int8)
    scale = floats(g, (rows, groups), torch.bfloat16)
    parts = {"weight_packed": pack_to_int32(codes, bits), "weight_scale": scale,
             "weight_shape": torch.tensor([rows, columns], dtype=torch.int64)}
    index = torch.arange(columns) // group
    if act:
        index = index[torch.randperm(columns, generator=g)]
        parts["weight_g_idx"] = index.to(torch.int32)
    zero = None
    if not symmetric:
        zero = ints(g, -half, half, (rows, groups)).to(torch.int8)
        parts["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0).contiguous()
        zero = unpack_from_int32(parts["weight_zero_point"], bits, torch.Size((rows, groups)), packed_dim=0)[:, index]
    codes = unpack_from_int32(parts["weight_packed"], bits, torch.Size((rows, columns)))
    return parts, _dequantize(codes, scale[:, index], zero)


def plain(g, rows, columns, kind, tile):
    shape = {"tensor": (1,), "channel": (rows, 1)}[tile]
    scale = floats(g, shape, torch.bfloat16)
    if kind == "float":
        codes = (torch.randn(rows, columns, generator=g) * 50).to(torch.float8_e4m3fn)
    else:
        codes = ints(g, -128, 128, (rows, columns)).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, _dequantize(codes, scale)


def compressed(form, bits, kind, strategy, group=None, symmetric=True, actorder=None, acts=None):
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": symmetric, "group_size": group,
               "actorder": actorder, "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "block_structure": None}
    one = {"targets": ["Linear"], "weights": weights, "input_activations": acts, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["lm_head"],
            "kv_cache_scheme": None, "config_groups": {"group_0": one}}


def gptq_config(bits, group, form="gptq", act=False):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": False, "checkpoint_format": form}


CASES = {
    "gptq-int4-g16": (gptq_config(4, 16), lambda g, r, c: gptq(g, r, c, 4, 16)),
    "gptq-int4-act": (gptq_config(4, 16, act=True), lambda g, r, c: gptq(g, r, c, 4, 16, act=True)),
    "gptq-int2-row-v2": (gptq_config(2, -1, "gptq_v2"), lambda g, r, c: gptq(g, r, c, 2, -1, v2=True)),
    "gptq-int3-g32": (gptq_config(3, 32), lambda g, r, c: gptq(g, r, c, 3, 32)),
    "gptq-int8-g16": (gptq_config(8, 16), lambda g, r, c: gptq(g, r, c, 8, 16)),
    "awq-int4-g16": ({"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"},
                     lambda g, r, c: awq(g, r, c, 16)),
    "fp8-blocks": ({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]},
                   lambda g, r, c: fp8(g, r, c, 16)),
    "ct-pack-int4-g16": (compressed("pack-quantized", 4, "int", "group", 16), lambda g, r, c: packed(g, r, c, 4, 16, True)),
    "ct-pack-int4-asym-act": (compressed("pack-quantized", 4, "int", "group", 16, False, "group"),
                              lambda g, r, c: packed(g, r, c, 4, 16, False, True)),
    "ct-pack-int8-channel": (compressed("pack-quantized", 8, "int", "channel"), lambda g, r, c: packed(g, r, c, 8, c, True)),
    "ct-int8-channel": (compressed("int-quantized", 8, "int", "channel", acts={"num_bits": 8, "dynamic": True}),
                        lambda g, r, c: plain(g, r, c, "int", "channel")),
    "ct-fp8-tensor": (compressed("float-quantized", 8, "float", "tensor"), lambda g, r, c: plain(g, r, c, "float", "tensor")),
    "ct-fp8-channel": (compressed("float-quantized", 8, "float", "channel"), lambda g, r, c: plain(g, r, c, "float", "channel")),
}

for name, (quantization, make) in CASES.items():
    g = torch.Generator().manual_seed(len(name))
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stored = {f"model.layers.0.{n}_layernorm.weight": torch.ones(HIDDEN, dtype=torch.float16)
              for n in ("input", "post_attention")}
    stored |= {"model.norm.weight": torch.ones(HIDDEN, dtype=torch.float16),
               "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=g).to(torch.float16)}
    dense = {}
    for module, (rows, columns) in SHAPES.items():
        parts, values = make(g, rows, columns)
        stored |= {f"model.layers.0.{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        dense[f"model.layers.0.{module}.weight"] = values.contiguous()
    save_file(stored, folder / "model.safetensors")
    save_file(dense, folder / "dense.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization}, indent=1) + "\n")
