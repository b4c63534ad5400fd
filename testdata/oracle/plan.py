"""Reads compiled plans and their proofs. Written from `docs/formats.md`, "Plans and proofs", and strict about it.

    python plan.py NAME.plan       # the plan as text: to the byte what attar writes to NAME.txt

As a module, `read_plan(bytes)` and `read_proof(bytes)` return dicts, lists, strings and numbers. A struct is a dict; a variant is its
name or, if it holds something, a dict of one key: {"Ring": 2}. Digests are checked if the package `blake3` is installed.
"""

import io
import struct
import sys
import unicodedata
from collections import namedtuple
from decimal import Decimal
from itertools import accumulate

try:
    from blake3 import blake3
except ImportError:
    blake3 = None

VERSION, HEADER, DEEPEST, LARGEST, MOST = 8, 8 + 4 + 32, 16, 1 << 28, (1 << 64) - 1
# A type: how a value is read, and its text. `names` are those of the buffers of a body, or of all tensors: numbers stand for them.
Type = namedtuple("Type", "read show", defaults=[lambda x, names: str(x)])
shown = lambda of, show: Type(of.read, lambda x, names: show(x))

def unsigned(file, bits):  # seven bits a byte, the lowest first; the highest bit of a byte says that another one follows
    value = 0
    for shift in range(0, bits, 7):
        byte = file.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128 and value < 1 << bits:
            return value
    raise ValueError(f"before byte {HEADER + file.tell()} is a number of more than {bits} bits")

def record(text="", *items, **fields):  # a struct, a tuple, or an array of a fixed length: one part after another
    parts = lambda x, names: {name: of.show(x[name], names) for name, of in fields.items()}
    show = lambda x, names: text.format(*(of.show(item, names) for of, item in zip(items, x)), **parts(x, names))
    return Type(lambda file: [of.read(file) for of in items] or {name: of.read(file) for name, of in fields.items()}, show)

def many(of, between=", "):  # a list: its length, then its items
    show = lambda x, names: between.join(of.show(item, names) for item in x)
    return Type(lambda file: [of.read(file) for _ in range(unsigned(file, 64))], show)

def maybe(of, before="", none=""):  # something optional: 0, or 1 and then it
    show = lambda x, names: none if x is None else before + of.show(x, names)
    return Type(lambda file: of.read(file) if flag.read(file) else None, show)

def enum(**variants):  # a choice: the number of the variant, then what it holds (None: nothing)
    def read(file):
        name, of = list(variants.items())[unsigned(file, 32)]
        return {name: of.read(file)} if of else name
    show = lambda x, names: "".join(variants[name].show(held, names) for name, held in x.items())
    return Type(read, lambda x, names: x.lower() if isinstance(x, str) else show(x, names))

def quoted(text):  # as Rust quotes it
    escapes = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
    plain = lambda c: c.isprintable() and unicodedata.category(c) not in ("Mn", "Me")
    return '"' + "".join(escapes.get(c) or (c if plain(c) else f"\\u{{{ord(c):x}}}") for c in text) + '"'

def digits(x):  # as Rust writes it: the fewest that mean this number, without an exponent
    return format(Decimal(repr(float(x))), "f").removesuffix(".0").replace("Infinity", "inf")

def placed(x, names):  # a tensor, with the bytes of all of its tiles; without tiles, each row has whole bytes
    whole = lambda count: -(-min(count * x["element"]["bits"], MOST) // (8 * max(x["element"]["per"], 1)))
    height, width = x["tile"] or (1, max(x["columns"], 1))
    across = lambda rows: x["columns"] // width * whole(rows * width) + whole(rows * (x["columns"] % width))
    return f"{PLACED.show(x, names)} + {x['rows'] // height * across(height) + across(x['rows'] % height)}, {x['role'].lower()}\n"

def body(at, x):  # statements, those in a loop further to the right
    text, depth, names = "", 1, [buffer["name"] for buffer in x["buffers"]]
    for line in x["code"]:
        depth -= line == "End"
        text += "  " * depth + ("}" if line == "End" else STATEMENT.show(line["Do"], names)) + "\n"
        depth += line != "End" and "Loop" in line["Do"]
    return f"body {at} {BODY.show(x, names)}{text}}}\n"

u8, i8 = Type(lambda file: file.read(1)[0]), Type(lambda file: struct.unpack("b", file.read(1))[0])
u32, u64 = Type(lambda file: unsigned(file, 32)), Type(lambda file: unsigned(file, 64))
# Signed numbers 0, -1, 1, -2 and so on are written as 0, 1, 2, 3.
i16, i32 = (Type(lambda file, bits=bits: (n := unsigned(file, bits)) >> 1 ^ -(n & 1)) for bits in (16, 32))
f64 = shown(Type(lambda file: struct.unpack("<d", file.read(8))[0]), digits)
flag, plain = Type(lambda file: [False, True][file.read(1)[0]]), Type(lambda file: file.read(unsigned(file, 64)).decode())
name, first = shown(plain, quoted), maybe(u8, ", from zero at v")
buffer = Type(u32.read, lambda x, names: names[x] if x < len(names) else "missing-buffer")
tensor = Type(u32.read, lambda x, names: quoted(names[x]) if x < len(names) else f"#{x}, which is missing")
# Types of a plan, with their texts.
BLOCK, RESCALE = record("[{}, {}, {}]", u64, u64, u64), record("* {multiplier} >> {shift}", multiplier=i32, shift=u8)
ELEMENT = record("{bits} bits{per}", bits=u32, per=shown(u32, lambda x: "" if x == 1 else f" for {x}"))
RATES = {"clock": f64, "lanes": u64, "flash": f64, "dispatch": u64}
RATES |= {"array": BLOCK, "fill": f64, "read": f64, "write": f64, "setup": f64, "outstanding": u64, "burst": shown(u64, digits), "coded": f64}
RATES |= {"mac_pj": f64, "sram_pj": f64, "dram_pj": f64, "cycle_pj": f64, "wide": maybe(BLOCK, none="none")}
RATES |= {work: maybe(f64, none="none") for work in ("product", "score", "norm", "rescale", "add", "rotary", "gate")}
RATES = record("""rates {clock} Hz, {lanes} lanes, {flash} bytes of flash, {dispatch} cycles to start
products {array} of int8, {wide} of int16, {fill} cycles to fill
transfers {read} bytes read, {write} written, {setup} cycles of setup, bursts of {burst}, {outstanding} outstanding, {coded} bytes for one of int8 weights
elementwise {product} a product, {score} a score, {norm} a norm, {rescale} a rescaling, {add} an addition, {rotary} a rotation, {gate} a gate
energies {mac_pj} pJ a product, {sram_pj} a byte of sram, {dram_pj} of dram, {cycle_pj} a cycle\n""", **RATES)
ROLE = enum(Input=None, Output=None, Scratch=None, State=None, Weight=None, Constant=None)
TENSOR = {"name": name, "rows": u64, "columns": u64, "element": ELEMENT, "role": ROLE}
SPACE, TILE = enum(Sram=None, Dram=None, Flash=None), maybe(record("[{}, {}]", u64, u64), " in tiles of ")
PLACED = record("tensor {name} [{rows}, {columns}] {element}{tile} at {space} {address}", **TENSOR, space=SPACE, address=u64, tile=TILE)
SLOTS = enum(Ring=shown(u64, "in {} slots".format), Packed=None)
BUFFER = record("  buffer {name}: {bytes} bytes of {element} {slots}\n", name=plain, bytes=u64, slots=SLOTS, element=ELEMENT)
FIXED = shown(record(start=u64, length=u64), lambda x: f"{x['start']}..{min(x['start'] + x['length'], MOST)}")
STEP = lambda x: f"v{x['variable']}" if (x["base"], x["unit"]) == (0, 1) else f"{x['base']} + v{x['variable']}*{x['unit']}"
SPAN = enum(Fixed=FIXED, Tile=shown(record(variable=u8, base=u64, unit=u64), lambda x: STEP(x).removeprefix("0 + ")))
REGION = record("[{rows}, {columns}]", rows=SPAN, columns=SPAN)
VIEW = record("{place} {region}", place=enum(Buffer=buffer, Operand=shown(u32, "operand {}".format)), region=REGION)
MASKS = {"Causal": "", "Past": ", and no others"}
MASK = enum(Causal=None, Window=u64, Past=None)
MASK = Type(MASK.read, lambda x, names: MASKS[x] if isinstance(x, str) else f", window {x['Window']}")
KEYS = record("keys of v{rows} after {past}{mask}", rows=u8, past=u64, mask=MASK)
ALL_KEYS = record("keys of {rows} rows after {past}{mask}", rows=u64, past=u64, mask=MASK)
EXTENT = enum(Count=u64, Keys=KEYS, Rows=record("rows of v{rows}", rows=u8), AllKeys=ALL_KEYS)
NORMED = shown(u64, lambda x: f" {x} normed," if x else "")
ROTARY = {"head": u64, "normed": NORMED, "rotated": u64, "constant": u32}
ROTARY = record("rotary by constant {constant}, {rotated} columns in heads of {head},{normed}", **ROTARY)
ACTIVATED = record("activated by constant {constant}", constant=u32)
FINISHING = enum(Rescale=None, Add=None, Activated=ACTIVATED, Rotary=ROTARY, Gated=record("gated by constant {constant}", constant=u32))
FINISH = {"sums": VIEW, "columns": VIEW, "extra": maybe(VIEW, ", "), "out": VIEW, "narrow": shown(u8, lambda x: f" >> {x}" if x else "")}
ATTEND = {"query": VIEW, "key": VIEW, "value": VIEW, "sums": VIEW, "softmax": VIEW}
NORMED_VIEWS = {"x": VIEW, "gains": VIEW, "residual": maybe(VIEW, ", "), "out": VIEW}
ATTEND_TEXT = "attend by constant {constant}, heads of {head} after {past}{mask}, weights of {weight_bits} bits, "
ATTEND_TEXT += "{sums}, {softmax} += {query}, {key}, {value}{first}"
ATTENDED_TEXT = "attended by constant {constant}, heads of {head}, {out} <- {sums}, {softmax}"
COMPUTE = enum(
    Multiply=record("multiply {sums} += {x} x {w}{first}", x=VIEW, w=VIEW, sums=VIEW, first=first),
    Finish=record("{finish} {out} <- {sums}{narrow}, {columns}{extra}", **FINISH, finish=FINISHING),
    Norm=record("norm by constant {constant} {out} <- {x}, {gains}{residual}", **NORMED_VIEWS, constant=u32),
    Attend=record(ATTEND_TEXT, **ATTEND, head=u64, past=u64, mask=MASK, weight_bits=u8, constant=u32, first=first),
    Attended=record(ATTENDED_TEXT, sums=VIEW, softmax=VIEW, out=VIEW, head=u64, constant=u32),
)
LOOP_TEXT, TARGETS = "for v{variable} in {extent} by {tile}, tiles {tiles} {{", many(record("operand {} from column {}", u32, u64))
STATEMENT = enum(
    Loop=record(LOOP_TEXT, variable=u8, extent=EXTENT, tile=u64, tiles=record("{}..{}", u64, u64)),
    Load=record("load {buffer} <- operand {operand} {region}", buffer=buffer, operand=u32, region=REGION),
    Wait=record("wait {buffer} {region}", buffer=buffer, region=REGION),
    Release=record("release {buffer}", buffer=buffer),
    Open=record("open {buffer} {region}", buffer=buffer, region=REGION),
    Store=record("store {buffer} {region} -> {operands}", buffer=buffer, operands=TARGETS, region=REGION),
    Compute=COMPUTE,
)
CODE, BUFFERS = many(enum(Do=STATEMENT, End=None)), many(BUFFER, "")
BODY = record("{name} ({operands} operands) {{\n{buffers}", name=name, operands=u32, buffers=BUFFERS, code=CODE)
HEAD_NORM = record("epsilon {epsilon}, gains [{gains}] >> {gain_shift}, ", gains=many(i32), epsilon=u64, gain_shift=u32)
RANGES = many(record("up to {end} {norm}{rescale}", end=u64, norm=maybe(HEAD_NORM, "normed with "), rescale=RESCALE))
GATE = record("{rescale}, table [{table}]", table=many(i16), rescale=RESCALE)
CENTERED = shown(flag, lambda x: ", centered" if x else "")
NORM_CONSTANT = record("epsilon {epsilon}, gains >> {gain_shift}{centered}", epsilon=u64, gain_shift=u32, centered=CENTERED)
CONSTANT = enum(Norm=NORM_CONSTANT, Ranges=RANGES, Gate=GATE, Rescale=RESCALE)
CONSTANTS = shown(many(CONSTANT), lambda x: "".join(f"  constant {at}: {CONSTANT.show(one, [])}\n" for at, one in enumerate(x)))
POSITION = shown(u64, lambda x: {0: "row", 1: "position"}.get(x, f"row ({x} a position)"))
BESIDE = shown(u64, lambda x: f", {x} rows side by side" if x != 1 else "")
FROM_ROW = record("{tensor} from {position} {row}{beside}", tensor=tensor, row=u64, position=POSITION, beside=BESIDE)
OPERAND = Type(FROM_ROW.read, lambda x, names: FROM_ROW.show(x, names).removesuffix(" from row 0"))
CALL = {"name": name, "body": u32, "operands": many(OPERAND), "offsets": many(u64), "constants": CONSTANTS}
CALL |= {"fence_weights": shown(flag, lambda x: "" if x else " except weight loads")}
CALLS = many(record("barrier{fence_weights}\ncall {body} {name} ({operands}) at [{offsets}]\n{constants}", **CALL), "")
PLAN = {"device": name, "title": name, "sram": u64, "align": u64, "rates": RATES, "tensors": many(Type(PLACED.read, placed), "")}
PLAN_TEXT = "plan {title} for {device}, {sram} bytes of sram, aligned to {align}\n{rates}{tensors}{bodies}{calls}"
PLAN = record(PLAN_TEXT, **PLAN, bodies=shown(many(BODY), lambda x: "".join(body(at, one) for at, one in enumerate(x))), calls=CALLS)
# Types of a proof, which has no text.
NORM = record(x=u32, row=u64, gains=u32, out=u32, epsilon=u64, gain_shift=u32, centered=flag, residual=maybe(u32))
ADD = record(residual=u32)
EPILOGUE = enum(Rescale=None, Add=ADD, Activated=GATE, Rotary=record(table=maybe(u32), position=u64, head=u64, rotated=u64, ranges=RANGES), Gated=GATE)
LINEAR = record(x=u32, weight=u32, columns=u32, out=many(record(tensor=u32, row=u64)), epilogue=EPILOGUE, narrow=u8)
HEADS = {"heads": u64, "key_heads": u64, "head": u64, "past": u64, "mask": MASK, "weight_bits": u8}
ATTENTION = record(query=u32, state=u32, out=u32, **HEADS, logits=RESCALE, rescale=RESCALE)
KERNELS = {"Norm": NORM, "Linear": LINEAR, "Attention": ATTENTION, "GatedMlp": record(gated=LINEAR, down=LINEAR)}
KERNEL = enum(**KERNELS, Normed=record(norm=NORM, then=enum(**KERNELS)))
DATA = enum(Numbers=many(i32), Weight=record(codes=many(i8), scales=many(i8)), Columns=many(record(rescale=RESCALE, bias=i32, coarser=u8)))
PROOF = record(program=record(tensors=many(record(**TENSOR)), kernels=many(record("", name, KERNEL)), batch=u64), memory=many(DATA), results=many(record("", u32, many(i32))))

def read(magic, of, data):
    if not data.startswith(magic):
        raise ValueError(f"it does not begin with `{magic.decode()}`")
    if len(data) >= HEADER and (version := int.from_bytes(data[8:12], "little")) != VERSION:
        raise ValueError(f"it has version {version} of the format, not {VERSION}")
    if blake3 and blake3(data[HEADER:]).digest() != data[12:HEADER]:
        raise ValueError("its digest is not that of its content: it is damaged or cut off")
    file = io.BytesIO(data[HEADER:])
    try:
        content = of.read(file)
    except (IndexError, OverflowError, UnicodeDecodeError, struct.error):
        raise ValueError(f"it is wrong before byte {HEADER + file.tell()}, or cut off there") from None
    if file.read(1):
        raise ValueError(f"something follows its content, from byte {HEADER + file.tell() - 1} on")
    return content

read_proof = lambda data: read(b"attarprf", PROOF, data)

def read_plan(data):
    plan = read(b"attarpln", PLAN, data)
    for tensor in plan["tensors"]:
        rows, columns, bits, tile = tensor["rows"], tensor["columns"], tensor["element"]["bits"], tensor["tile"] or [1]
        if max(rows, columns, bits, *tile) > LARGEST or 0 in tile or rows * columns * bits > MOST:
            raise ValueError(f"the tensor {quoted(tensor['name'])} has an impossible size")
    for body in plan["bodies"]:
        changes = [-1 if line == "End" else "Loop" in line["Do"] for line in body["code"]]
        if sum(changes) or not all(0 <= depth <= DEEPEST for depth in accumulate(changes)):
            raise ValueError(f"loops of the body {quoted(body['name'])} do not nest")
    return plan

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: python plan.py NAME.plan")
    try:
        with open(path, "rb") as file:
            plan = read_plan(file.read())
        with open(1, "wb", closefd=False) as out:
            out.write(PLAN.show(plan, [tensor["name"] for tensor in plan["tensors"]]).encode())
    except (ValueError, OSError) as error:
        sys.exit(f"{path}: {error}")
    blake3 or print("the digest is not checked: there is no package `blake3`", file=sys.stderr)
