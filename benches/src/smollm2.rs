//! The main job on a real model: SmolLM2-135M from bf16 to int4 ONNX, written and verified, nothing measured.

use std::{fs, process::Command};

use crate::{
    Bench, Failure, cost, host,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench =
    Bench { name: "smollm2", about: "SmolLM2-135M from bf16 to verified int4 ONNX in a process of its own", quick: true, run };

fn run(_options: &[String]) -> Result<(), Failure> {
    let model = host::target().join("models/smollm2-135m");
    if !model.exists() {
        println!("skipped: `{}` is absent; `cargo xtask smollm2` makes it", model.display());
        return Ok(());
    }
    let attar = host::attar()?;
    let folder = host::scratch("smollm2")?;
    let (bytes, copy) = cost::of(|| host::copy_folder(&model, &folder.join("copy")));
    let bytes = bytes? as f64;
    fs::remove_dir_all(folder.join("copy"))?;
    let recipe = folder.join("smollm2.toml");
    let text = format!(
        "recipe = 1\nmodel = {model:?}\noutput = {:?}\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n[[export]]\ntarget = \"onnx\"\n",
        folder.join("out")
    );
    fs::write(&recipe, text)?;
    let done = cost::of_command(Command::new(&attar).args(["run", "--quiet"]).arg(&recipe))?;
    fs::remove_dir_all(&folder)?;
    let mut table = Table::new();
    let rate = |cost: cost::Cost| format!("{:.0} MB/CPU-s", bytes / 1e6 / cost.cpu);
    table.add(Row { work: "copy of the checkpoint", cost: copy, rate: rate(copy), ratio: "1".into(), goal: "" });
    let ratio = format!("{:.1} x", done.cpu / copy.cpu);
    table.add(Row { work: "attar run smollm2.toml", cost: done, rate: rate(done), ratio, goal: "5 CPU s, 200 MB" });
    table.print();
    Ok(())
}
