# The session of Intel's NPU compiler. It follows worker.py, which asks for it. Its libraries are for Windows: `npuc.exe` beside them, run by
# Wine, compiles a model and prints the compiler's log. A decoder is compiled as OpenVINO GenAI would have it on a device, in three parts.
import ctypes
import fcntl
import re
import shutil
import signal
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# Neither Mono nor Gecko, for which a new prefix would ask.
OVERRIDES = "mscoree,mshtml="
# What the pipeline sets by itself where it sees a device; without one, it takes the compiler for an old one and unpacks weights to f16.
ON_DEVICE = {
    "NPUW_DQ": "YES",
    "NPUW_DQ_FULL": "NO",
    "NPU_COMPILER_DYNAMIC_QUANTIZATION": "YES",
    "NPUW_DCOFF_TYPE": "",
    "NPUW_DCOFF_SCALE": "NO",
}
PRECISE = "compute-layers-with-higher-precision=Sqrt,Power,ReduceMean,Add_RMSNorm"
ON_PLATFORM = {"4000": {"NPU_COMPILATION_MODE_PARAMS": f"{PRECISE} optimization-level=3"}}
# The parts of a decoder in the order of their compilation, and the file with the plan of each.
PARTS = {"generate": "generate.xml", "prefill": "prefill.xml", "head": "head.xml"}
# A compilation of one sub-model starts with this line; the others are about the one that started last.
START = "[serializeIR] Model serialization duration"
ESTIMATE = re.compile(r"Estimated inference latency: ([\d.]+) us")
UNKNOWN = re.compile(r"SHAVE operations are unsupported by VPUNN.*?\[(.*)\]")
DOUBT = re.compile(r"\[WARNING\] [\d:.]+ (.*(?:invalid cost|VPUNN error).*)")
COMPILER = re.compile(r"VCL Compiler Properties: ID: (\S+), Version: ([\d.]+)")
FAILED = re.compile(r"npuc: failed: (.*)", re.DOTALL)
ERROR = re.compile(r"\[ERROR\] [\d:.]+ (.*)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m|\r")


def wine_of(names):
    """A program of Wine's; Debian's package `wine64` keeps them off the path."""
    for name in names:
        if found := shutil.which(name) or shutil.which(f"/usr/lib/wine/{name}"):
            return found
    raise OSError("Wine is not installed; on Debian, `apt-get install wine64`")


def ends_with_parent():
    """In the child: it is killed when the worker is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def of_decoder(ask):
    """The settings of a decoder that takes prompts and gives answers of so many tokens."""
    return {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": "NPU",
        # A sub-model that the NPU refuses fails, rather than going to the processor.
        "NPUW_FALLBACK_EXEC": "NO",
        "NPUW_LLM_MAX_PROMPT_LEN": str(ask["prompt"]),
        "NPUW_LLM_MIN_RESPONSE_LEN": str(ask["answer"]),
        # The whole prompt in one call, and one kind of call for a token, with the longest context.
        "NPUW_LLM_PREFILL_HINT": "STATIC",
        "NPUW_LLM_GENERATE_PYRAMID": "NO",
        # Otherwise a random name.
        "NPUW_WEIGHTS_BANK": "attar",
        "NPUW_ONLINE_DUMP_PLAN": PARTS["head"],
        "++NPUW_LLM_GENERATE_CONFIG": "{NPUW_ONLINE_DUMP_PLAN:%s}" % PARTS["generate"],
        "++NPUW_LLM_PREFILL_CONFIG": "{NPUW_ONLINE_DUMP_PLAN:%s}" % PARTS["prefill"],
    }


def read_log(text):
    """The compiler, the microseconds of each sub-model, the operators that its cost model does not know, and its doubts."""
    compiler, estimates, unknown, doubts = "", [], set(), []
    for line in text.splitlines():
        if START in line:
            estimates.append(None)
        elif found := COMPILER.search(line):
            compiler = f"version {found[2]}, {found[1]}"
        elif (found := ESTIMATE.search(line)) and estimates:
            estimates[-1] = float(found[1])
        elif found := UNKNOWN.search(line):
            unknown |= {name.strip() for name in found[1].split(",") if name.strip()}
        elif (found := DOUBT.search(line)) and found[1] not in doubts:
            doubts.append(found[1])
    return compiler, estimates, sorted(unknown), doubts


def read_plans(folder):
    """The part and the calls in one pass of each sub-model: a repeated one is compiled once."""
    planned = []
    for part, name in PARTS.items():
        groups = ElementTree.parse(folder / name).getroot().find("partitioning")
        tags = [group.get("repeated") for group in groups]
        firsts = [at for at, tag in enumerate(tags) if not tag or tags.index(tag) == at]
        planned += [(part, tags.count(tags[at]) if tags[at] else 1) for at in firsts]
    return planned


def seconds(planned, estimates, parts):
    """One pass through some parts, if the compiler has estimated all of it."""
    passed = [(calls, estimate) for (part, calls), estimate in zip(planned, estimates) if part in parts]
    if not passed or any(estimate is None for _, estimate in passed):
        return None
    return sum(calls * estimate for calls, estimate in passed) / 1e6


class Session:
    outputs = ()

    def __init__(self, library, model, mode, device, threads, ask):
        self.libs, self.model = Path(library).parent, Path(model)
        self.prefix = Path(sys.prefix) / "prefix"
        if not (self.libs / "npuc.exe").is_file() or not self.prefix.is_dir():
            raise OSError("it is not installed whole: `cargo xtask engines openvino-npu` does what is missing")
        decoder = "ReadValue" in self.model.read_text("utf-8")
        settings = {"NPU_COMPILER_TYPE": "PLUGIN", "NPU_PLATFORM": device, "LOG_LEVEL": "LOG_INFO"}
        if decoder:
            settings |= of_decoder(ask) | ON_DEVICE | ON_PLATFORM.get(device, {})
        notes = ["estimated by the compiler without a device, and not measured"]
        rounded = [-(-ask[what] // 64) * 64 for what in ("prompt", "answer")]
        if decoder and rounded != [ask["prompt"], ask["answer"]]:
            notes.append(f"for prompts of {rounded[0]} and answers of {rounded[1]} tokens: the pipeline rounds up to 64")
        tokens = [] if decoder else ["--tokens", str(ask["prompt"])]
        try:
            found = self.compile(settings, tokens, decoder)
        except ValueError as error:
            # With its two tiles, attention in prompts ends in an error of the compiler's own.
            if device != "3720" or "UnrollPermuteDMA" not in str(error) and "crashed" not in str(error):
                raise
            found = self.compile(settings | {"NPU_TILES": "1"}, tokens, decoder)
            notes.append("for one tile of two: with both, the compiler fails")
        compiler, estimates, planned, unknown, doubts, size = found
        notes.insert(0, f"compiler {compiler}")
        if unknown:
            notes.append(f"its cost model does not know {', '.join(unknown)}")
        if len(planned) != len(estimates):
            notes.append(f"{len(estimates)} sub-models were compiled where {len(planned)} were planned: no sums")
            planned = []
        self.predicted = {
            "latency": seconds(planned, estimates, ("prefill", "head")),
            "decode_latency": seconds(planned, estimates, ("generate", "head")),
            "compiled_bytes": size,
            "notes": notes + doubts,
        }

    def compile(self, settings, tokens, decoder):
        with tempfile.TemporaryDirectory() as temporary, open(self.prefix / "attar-lock", "w") as lock:
            folder = Path(temporary)
            # Short names without blanks.
            (folder / "model.xml").symlink_to(self.model.resolve())
            (folder / "model.bin").symlink_to(self.model.with_suffix(".bin").resolve())
            # A run that was killed while Wine started leaves a server that no later run gets past.
            fcntl.flock(lock, fcntl.LOCK_EX)
            environment = {**os.environ, "WINEPREFIX": str(self.prefix), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": OVERRIDES}
            subprocess.run([wine_of(("wineserver64", "wineserver")), "-k"], env=environment, stderr=subprocess.DEVNULL)
            command = [wine_of(("wine64", "wine")), str(self.libs / "npuc.exe"), "model.xml", "model.blob", *tokens]
            command += [f"{key}={value}" for key, value in settings.items()]
            with open(folder / "log", "wb") as log:
                done = subprocess.run(
                    command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=ends_with_parent
                )
            said = COLOUR.sub("", (folder / "log").read_text("utf-8", "replace"))
            if "npuc: done" not in said:
                raise ValueError(reason(done.returncode, said))
            compiler, estimates, unknown, doubts = read_log(said)
            planned = read_plans(folder) if decoder else [("prefill", 1)]
            return compiler, estimates, planned, unknown, doubts, (folder / "model.blob").stat().st_size


def reason(status, said):
    """Why the driver failed, in the words of the compiler."""
    if found := FAILED.search(said):
        message = " ".join(found[1].split())
    elif "wine: Unhandled" in said:
        # Its exit status is 0 then.
        message = "the compiler crashed before it could say why"
    else:
        message = f"Wine ended with status {status}: {said[-300:].strip()}"
    if "undeclared parameters" in message:
        message += "; with fewer than five blocks, Intel's pipeline for decoders fails on many models"
    return "; ".join(dict.fromkeys([message, *ERROR.findall(said)]))
