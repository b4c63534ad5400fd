//! `attar inspect PATH`: the contents of a checkpoint, an artifact, an output folder or a store.

use std::{path::Path, process::ExitCode};

use attar_recipe::{Error, bytes};
use attar_tensor::{FolderStore, Store, TensorInfo};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::{Verb, draw, ignore_argument, open, path, path_argument};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Inspect;

impl Verb for Inspect {
    fn name(&self) -> &'static str {
        "inspect"
    }

    fn command(&self) -> Command {
        Command::new("inspect")
            .about("Show the contents of a checkpoint, an artifact, an output folder or a store")
            .arg(path_argument("PATH", "A folder or a GGUF file"))
            .arg(ignore_argument())
            .arg(Arg::new("graph").long("graph").help("Print a checkpoint's graph in text form").action(ArgAction::SetTrue))
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar inspect int4", "attar inspect model --graph", "attar inspect plans"]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let path = path(arguments, "path");
        // A checkpoint folder of attar is an artifact, too; shown as a checkpoint it tells more.
        let described = ["artifact.json", "manifest.json"].map(|name| path.join(name));
        if arguments.get_flag("graph") {
            printer.data(&open(path, arguments)?.graph.to_string());
        } else if FolderStore::is_at(path) {
            store(path, printer)?;
        } else if path.join(attar_tensor::MANIFEST).exists() {
            checkpoint(path, arguments, printer)?;
        } else if let Some(file) = described.iter().find(|file| file.exists()) {
            written(file, printer)?;
        } else {
            checkpoint(path, arguments, printer)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn checkpoint(path: &Path, arguments: &ArgMatches, printer: &Printer) -> Result<(), Error> {
    let model = open(path, arguments)?;
    let weights: Vec<(String, TensorInfo, String)> = model
        .graph
        .weights()
        .map(|(_, value, expr)| {
            let info = TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding };
            (value.name.clone(), info, expr.to_string())
        })
        .collect();
    let mut seen = std::collections::HashSet::new();
    let distinct = || weights.iter().filter(|(_, _, expr)| !expr.is_empty());
    let bits: u64 = distinct().filter(|(_, _, expr)| seen.insert(expr.clone())).map(|(_, info, _)| info.true_bits()).sum();
    let per_weight = bits as f64 / model.parameters().max(1) as f64;
    if printer.json {
        let tensors: Vec<Value> = weights
            .iter()
            .map(|(name, info, expr)| json!({ "name": name, "dims": info.dims, "encoding": info.encoding.to_string(), "stored": expr, "true_bits": info.true_bits() }))
            .collect();
        printer.value(&json!({
            "path": path, "architecture": model.config.architecture, "parameters": model.parameters(),
            "bits_per_weight": per_weight, "tensors": tensors, "quantized": model.quantized.as_ref().map(ToString::to_string),
        }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = weights
        .iter()
        .map(|(name, info, expr)| {
            let stored = expr.strip_prefix("tensor(\"").and_then(|e| e.strip_suffix("\")")).unwrap_or(expr);
            vec![
                name.clone(),
                format!("{:?}", info.dims),
                info.encoding.to_string(),
                bytes(info.true_bits().div_ceil(8)),
                stored.into(),
            ]
        })
        .collect();
    printer.data(&draw(&["weight", "shape", "encoding", "bytes", "stored as"], &rows));
    printer.data(&format!(
        "{} ({}): {} parameters, {} blocks, {per_weight:.3} bits per weight",
        path.display(),
        model.config.architecture,
        model.parameters(),
        model.graph.block_count().saturating_sub(2),
    ));
    model.quantized.iter().for_each(|how| printer.data(&how.to_string()));
    Ok(())
}

fn store(path: &Path, printer: &Printer) -> Result<(), Error> {
    let blobs = FolderStore::existing(path)?.blobs()?;
    let total: u64 = blobs.values().sum();
    if printer.json {
        let blobs: Vec<Value> = blobs.iter().map(|(digest, bytes)| json!({ "digest": digest, "bytes": bytes })).collect();
        printer.value(&json!({ "path": path, "bytes": total, "blobs": blobs }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = blobs.iter().map(|(digest, n)| vec![digest.to_string(), bytes(*n)]).collect();
    printer.data(&draw(&["blob", "bytes"], &rows));
    printer.data(&format!("{}: {} blobs, {}", path.display(), blobs.len(), bytes(total)));
    Ok(())
}

fn written(file: &Path, printer: &Printer) -> Result<(), Error> {
    let broken = |e: &dyn std::error::Error| Error::input(format!("`{}` cannot be used", file.display())).because(e);
    let text = std::fs::read(file).map_err(|e| broken(&e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| broken(&e))?;
    if printer.json {
        printer.value(&value);
        return Ok(());
    }
    let artifacts: Vec<&Value> = match value["artifacts"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![&value],
    };
    for artifact in artifacts {
        let rows: Vec<Vec<String>> = artifact["tensors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| {
                let text = |key: &str| t[key].as_str().unwrap_or("-").to_owned();
                let snr = t["snr_db"].as_f64().map_or("-".into(), |snr| format!("{snr:.1}"));
                vec![
                    text("name"),
                    t["dims"].to_string(),
                    text("encoding"),
                    text("storage"),
                    bytes(t["stored_bytes"].as_u64().unwrap_or(0)),
                    snr,
                ]
            })
            .collect();
        printer.data(&draw(&["weight", "shape", "encoding", "storage", "bytes", "SNR dB"], &rows));
        let totals = &artifact["totals"];
        printer.data(&format!(
            "{} {}: {} weights, {:.3} bits per weight ({:.3} per quantized weight), {}",
            artifact["target"].as_str().unwrap_or("?"),
            artifact["folder"].as_str().unwrap_or(""),
            totals["weights"],
            totals["bits_per_weight"].as_f64().unwrap_or(0.0),
            totals["quantized_bits_per_weight"].as_f64().unwrap_or(0.0),
            bytes(totals["stored_bytes"].as_u64().unwrap_or(0)),
        ));
    }
    folders(&value, printer);
    Ok(())
}

/// The folders that steps have written besides artifacts.
fn folders(manifest: &Value, printer: &Printer) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let row = |folder: &Value, file: &Value| {
        let name = format!("{}/{}", text(&folder["folder"]), text(&file["name"]));
        vec![text(&folder["step"]), name, bytes(file["bytes"].as_u64().unwrap_or(0)), text(&file["digest"])]
    };
    let rows: Vec<Vec<String>> = list(&manifest["folders"])
        .iter()
        .flat_map(|folder| list(&folder["files"]).iter().map(|file| row(folder, file)).collect::<Vec<_>>())
        .collect();
    if !rows.is_empty() {
        printer.data(&draw(&["step", "file", "bytes", "digest"], &rows));
    }
}
