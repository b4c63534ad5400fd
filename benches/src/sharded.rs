//! A checkpoint larger than memory should need to be: 4 GB of bf16 in eight shards, made here, quantized by the real
//! binary.

use std::{fs, process::Command};

use crate::{
    Bench, Failure,
    checkpoint::Shape,
    cost, host,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench = Bench {
    name: "sharded",
    about: "A synthetic sharded checkpoint of 4 GB (`--small`: 400 MB; `--keep`: leave it) to an int4 checkpoint",
    quick: false,
    run,
};

const SHARDS: usize = 8;

/// 4 GB.
const LARGE: Shape =
    Shape { hidden: 2560, intermediate: 6912, blocks: 26, heads: 32, key_heads: 8, vocabulary: 32_000, tied: false };

/// 400 MB.
const SMALL: Shape =
    Shape { hidden: 1024, intermediate: 2816, blocks: 12, heads: 16, key_heads: 4, vocabulary: 32_000, tied: false };

fn run(options: &[String]) -> Result<(), Failure> {
    let asked = |option: &str| options.iter().any(|given| given == option);
    let shape = if asked("--small") { SMALL } else { LARGE };
    let attar = host::attar()?;
    let folder = host::scratch("sharded")?;
    let (wanted, free) = (3.0 * shape.bytes() as f64, host::free_bytes(&folder)?);
    if free < wanted {
        println!("skipped: {:.1} GB are wanted in `{}`, and {:.1} GB are free", wanted / 1e9, folder.display(), free / 1e9);
        return Ok(());
    }
    let (model, out) = (folder.join("model"), folder.join("out"));
    fs::create_dir(&model)?;
    shape.write(&model, SHARDS)?;
    let (bytes, copy) = cost::of(|| host::copy_folder(&model, &folder.join("copy")));
    let bytes = bytes? as f64;
    fs::remove_dir_all(folder.join("copy"))?;
    let mut command = Command::new(&attar);
    command.arg("quantize").arg(&model).args(["--grid", "int4", "--group", "64", "--quiet", "--out"]).arg(&out);
    let done = cost::of_command(&mut command);
    if !asked("--keep") {
        fs::remove_dir_all(&folder)?;
    }
    let done = done?;
    let mut table = Table::new();
    let rate = |cost: cost::Cost| format!("{:.0} MB/CPU-s", bytes / 1e6 / cost.cpu);
    let size = format!("copy of {:.2} GB", bytes / 1e9);
    table.add(Row { work: &size, cost: copy, rate: rate(copy), ratio: "1".into(), goal: "" });
    let ratio = format!("{:.1} x", done.cpu / copy.cpu);
    table.add(Row { work: "attar quantize --grid int4 --group 64", cost: done, rate: rate(done), ratio, goal: "300 MB" });
    table.print();
    Ok(())
}
