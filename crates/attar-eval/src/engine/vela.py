# The session of Vela. It follows worker.py, which asks for it. Vela ends well whatever it leaves to the processor, even all of a model: what it prints is
# read.
import csv
import re
import subprocess
import tempfile
from pathlib import Path

# Of Arm's own examples, the memories that attar's files of these devices have, too: predictions by both are of one system.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram_512KB"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_512KB"),
}
LEFT = re.compile(r"CPU operators = (\d+)")
TAKEN = re.compile(r"NPU operators = (\d+)")
LEFT_ONE = re.compile(r"^\s*CPU: (\S+)", re.MULTILINE)
KIB = 1024


class Session:
    outputs = ()

    def __init__(self, library, model, mode, device, threads, ask):
        model = Path(model)
        decode = model.name == "decode.tflite"
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            first, *rest = [self.compile(path, device) for path in ([model.with_name("prefill.tflite")] if decode else []) + [model]]
        compiled = [first, *rest]
        system, memory = SYSTEMS[device[: len("ethos-u55")]]
        notes = [f"by Vela's model of {system} with {memory}"]
        names = ("part of a prompt", "token") if decode else ("text",)
        for name, found in zip(names, compiled):
            tokens = f" of {found['rows']}" if name.startswith("part") else ""
            notes.append(f"a {name}{tokens}: {found['operators']} operators, all on the NPU, {found['cycles_total']:.0f} cycles")
        parts = -(-ask["prompt"] // first["rows"]) if decode else 1
        total = {key: max(found[key] for found in compiled) for key in ("sram_memory_used", "off_chip")}
        self.predicted = {
            "latency": parts * first["inference_time"],
            "decode_latency": rest[0]["inference_time"] if decode else None,
            "peak_sram": round(total["sram_memory_used"] * KIB),
            "peak_dram": round(total["off_chip"] * KIB),
            "dram_bytes": round(parts * first["off_chip_bytes"]),
            "compiled_bytes": sum(found["bytes"] for found in compiled),
            "notes": notes,
            "calls": [call(name, found) for name, found in zip(("prefill", "decode") if decode else ("encode",), compiled)],
        }

    def compile(self, model, device):
        system, memory = SYSTEMS[device[: len("ethos-u55")]]
        command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", device, "--show-cpu-operations"]
        command += ["--output-dir", str(self.folder), "--config", "Arm/vela.ini", "--system-config", system, "--memory-mode", memory]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode:
            raise ValueError(f"Vela ended with status {done.returncode}: {' '.join(said.split())[-300:]}")
        left, taken = LEFT.search(said), TAKEN.search(said)
        if not left or not taken:
            raise ValueError("Vela does not say how many operators the NPU takes")
        if int(left[1]) or not int(taken[1]):
            names = ", ".join(sorted(set(LEFT_ONE.findall(said)))) or "all"
            raise ValueError(
                f"Vela leaves {left[1]} operators of {model.name} to the processor ({names}) and gives the NPU {taken[1]}: export with `lookups = \"outside\"`, "
                "from a model with `values = \"all\"`"
            )
        (path,) = self.folder.glob(f"{model.stem}_summary_*.csv")
        with open(path, newline="") as file:
            (row,) = csv.DictReader(file)
        found = {key: float(row[key]) for key in ("inference_time", "sram_memory_used", "cycles_total", "cycles_npu")}
        found["off_chip"] = float(row["dram_memory_used"]) + float(row["off_chip_flash_memory_used"])
        found["off_chip_bytes"] = float(row["dram_total_bytes"]) + float(row["off_chip_flash_total_bytes"])
        found["operators"] = int(taken[1])
        found["bytes"] = (self.folder / f"{model.stem}_vela.tflite").stat().st_size
        found["rows"], found["past"] = tokens_of(model)
        return found


def call(name, found):
    """What is predicted of one call."""
    return {
        "name": name,
        **{key: found[key] for key in ("rows", "past")},
        "cycles": round(found["cycles_total"]),
        "latency": found["inference_time"],
        "peak_sram": round(found["sram_memory_used"] * KIB),
        "peak_dram": round(found["off_chip"] * KIB),
        "dram_bytes": round(found["off_chip_bytes"]),
    }


def tokens_of(model):
    """Tokens of a call, and tokens in the cache before: the rows of its mask, and how many columns there are more. All tokens of an encoder have one row."""
    from ethosu.vela.tflite.Model import Model

    graph = Model.GetRootAs(model.read_bytes(), 0).Subgraphs(0)
    inputs = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
    shape = next(([int(size) for size in t.ShapeAsNumpy()] for t in inputs if b"/mask" in t.Name()), [1, 1, 1, 1])
    rows = shape[3] if model.name == "model.tflite" else shape[2]
    return rows, shape[3] - rows
