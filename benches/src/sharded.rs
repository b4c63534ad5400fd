//! Checkpoints larger than memory should need to be: bf16 in eight shards, made here, quantized and exported by the real binary.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    Bench, Failure,
    checkpoint::Shape,
    cost, host,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench = Bench {
    name: "sharded",
    about: "A synthetic sharded checkpoint of 4 GB (or `--400m`, `--1b`, `--7b`; `--keep`: leave it) to an int4 checkpoint and to int4 ONNX",
    quick: false,
    run,
};

const SHARDS: usize = 8;

/// A shape, its option, and what the way to ONNX may cost.
struct Size {
    option: &'static str,
    shape: Shape,
    goal: &'static str,
}

/// The first is the default.
const SIZES: [Size; 4] = [
    Size {
        option: "--4gb",
        shape: Shape {
            kind: "llama",
            hidden: 2560,
            intermediate: 6912,
            blocks: 26,
            heads: 32,
            key_heads: 8,
            vocabulary: 32_000,
            tied: false,
        },
        goal: "",
    },
    Size {
        option: "--400m",
        shape: Shape {
            kind: "llama",
            hidden: 1024,
            intermediate: 2816,
            blocks: 12,
            heads: 16,
            key_heads: 4,
            vocabulary: 32_000,
            tied: false,
        },
        goal: "",
    },
    // Of TinyLlama's shapes.
    Size {
        option: "--1b",
        shape: Shape {
            kind: "llama",
            hidden: 2048,
            intermediate: 5632,
            blocks: 22,
            heads: 32,
            key_heads: 4,
            vocabulary: 32_000,
            tied: false,
        },
        goal: "18 CPU-s, 64 MB",
    },
    // Of Qwen2-7B's.
    Size {
        option: "--7b",
        shape: Shape {
            kind: "qwen2",
            hidden: 3584,
            intermediate: 18_944,
            blocks: 28,
            heads: 28,
            key_heads: 4,
            vocabulary: 152_064,
            tied: false,
        },
        goal: "200 CPU-s, 250 MB",
    },
];

fn run(options: &[String]) -> Result<(), Failure> {
    let asked = |option: &str| options.iter().any(|given| given == option);
    let Size { shape, goal, .. } = SIZES.iter().find(|size| asked(size.option)).unwrap_or(&SIZES[0]);
    let attar = host::attar()?;
    let folder = host::scratch("sharded")?;
    let (wanted, free) = (2.0 * shape.bytes() as f64, host::free_bytes(&folder)?);
    if free < wanted {
        println!("skipped: {:.1} GB are wanted in `{}`, and {:.1} GB are free", wanted / 1e9, folder.display(), free / 1e9);
        return Ok(());
    }
    let model = folder.join("model");
    fs::create_dir(&model)?;
    shape.write(&model, SHARDS)?;
    let (bytes, copy) = cost::of(|| host::copy_folder(&model, &folder.join("copy")));
    let bytes = bytes? as f64;
    fs::remove_dir_all(folder.join("copy"))?;
    let quantized = quantize(&attar, &model, &folder.join("int4"));
    fs::remove_dir_all(folder.join("int4"))?;
    let exported = to_onnx(&attar, &folder);
    if !asked("--keep") {
        fs::remove_dir_all(&folder)?;
    }
    let mut table = Table::new();
    let rate = |cost: cost::Cost| format!("{:.0} MB/CPU-s", bytes / 1e6 / cost.cpu);
    let size = format!("copy of {:.2} GB", bytes / 1e9);
    table.add(Row { work: &size, cost: copy, rate: rate(copy), ratio: "1".into(), goal: "" });
    for (work, done, goal) in
        [("attar quantize --grid int4 --group 64", quantized?, "300 MB"), ("a recipe: int4/g64, and `onnx`", exported?, goal)]
    {
        let ratio = format!("{:.1} x", done.cpu / copy.cpu);
        table.add(Row { work, cost: done, rate: rate(done), ratio, goal });
    }
    table.print();
    Ok(())
}

fn quantize(attar: &Path, model: &Path, out: &Path) -> Result<cost::Cost, Failure> {
    let mut command = Command::new(attar);
    command.arg("quantize").arg(model).args(["--grid", "int4", "--group", "64", "--quiet", "--out"]).arg(out);
    cost::of_command(&mut command)
}

/// Embedding and head are quantized, too.
fn to_onnx(attar: &Path, folder: &Path) -> Result<cost::Cost, Failure> {
    let text = "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n\
                select = [\"embedding\", \"lm_head\", \"blocks.*.{attention,mlp}.*\"]\n\n[[export]]\ntarget = \"onnx\"\n";
    fs::write(folder.join("recipe.toml"), text)?;
    let mut command = Command::new(attar);
    // Paths of a recipe are relative to where it is run.
    cost::of_command(command.current_dir(folder).args(["run", "recipe.toml", "--quiet"]).stdout(Stdio::null()))
}
