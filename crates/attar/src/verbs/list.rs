//! `attar devices`, `attar engines`, `attar targets`, `attar profiles`, `attar grids`: what can be named in recipes and on the command line.

use std::process::ExitCode;

use attar_compile::device::Device;
use attar_eval::engine::{Engine, installed};
use attar_export::TARGETS as ALL_TARGETS;
use attar_recipe::{Error, PROFILES as ALL_PROFILES, Profile};
use attar_tensor::{GRIDS as ALL_GRIDS, Grid, Levels};
use clap::{ArgMatches, Command};
use serde_json::{Map, Value};

use super::{Verb, draw};
use crate::{
    environment::{Environment, engine_flags},
    printer::Printer,
};

/// A verb that prints a table.
pub(super) struct List {
    name: &'static str,
    about: &'static str,
    example: &'static [&'static str],
    head: &'static [&'static str],
    rows: fn(&Environment) -> Result<Vec<Vec<String>>, Error>,
}

pub(super) static DEVICES: List = List {
    name: "devices",
    about: "List the devices that `--device` takes by name",
    example: &["attar devices"],
    head: &["name", "device", "SRAM KiB", "MACs per cycle, int8"],
    rows: |_| Device::names().map(|name| Ok(device(&Device::named(name)?))).collect(),
};

pub(super) static ENGINES: List = List {
    name: "engines",
    about: "List the engines that run artifacts, the compilers that predict for devices, and where they are on this machine",
    example: &["attar engines", "attar engines --json"],
    head: &["name", "opens", "devices", "version", "tested with", "library"],
    rows: |environment| Ok(installed().map(|engine| row_of_engine(engine, environment)).collect()),
};

pub(super) static TARGETS: List = List {
    name: "targets",
    about: "List the formats that `export` writes, and the engines that open them",
    example: &["attar targets"],
    head: &["name", "what it writes", "opened by"],
    rows: |_| Ok(ALL_TARGETS.iter().map(|target| row_of_target(target.name, target.about)).collect()),
};

pub(super) static PROFILES: List = List {
    name: "profiles",
    about: "List the devices that `--for` takes, and what they take",
    example: &["attar profiles"],
    head: &["name", "device", "target", "quantized weights"],
    rows: |_| Ok(ALL_PROFILES.iter().map(row_of_profile).collect()),
};

pub(super) static GRIDS: List = List {
    name: "grids",
    about: "List the number formats of quantized weights that `--grid` takes",
    example: &["attar grids"],
    head: &["name", "bits", "values"],
    rows: |_| Ok(ALL_GRIDS.iter().map(|grid| vec![grid.name().into(), grid.bits().to_string(), values(*grid)]).collect()),
};

impl Verb for List {
    fn name(&self) -> &'static str {
        self.name
    }

    fn command(&self) -> Command {
        let command = Command::new(self.name).about(self.about);
        if self.name == ENGINES.name { engine_flags(command) } else { command }
    }

    fn examples(&self) -> &'static [&'static str] {
        self.example
    }

    fn run(&self, _: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let rows = (self.rows)(environment)?;
        if printer.json {
            let object = |row: &Vec<String>| -> Map<String, Value> {
                self.head.iter().map(|key| (*key).to_owned()).zip(row.iter().cloned().map(Value::from)).collect()
            };
            printer.value(&rows.iter().map(object).collect::<Vec<_>>());
        } else {
            printer.data(&draw(self.head, &rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn device(device: &Device) -> Vec<String> {
    let int8 = device.engine.pairs.iter().find(|pair| (pair.weights, pair.activations) == (8, 8));
    let macs = int8.map_or("-".into(), |pair| pair.macs.to_string());
    vec![device.name.clone(), device.summary.clone(), (device.sram.usable >> 10).to_string(), macs]
}

fn row_of_engine(engine: &'static Engine, environment: &Environment) -> Vec<String> {
    let opens: Vec<&str> = engine.opens.iter().map(|opens| opens.target).collect();
    let [version, library] = match environment.engines().places.find(engine) {
        Ok(found) => [found.version, found.library.display().to_string()],
        Err(_) => ["-".into(), format!("not found; install it, or set {}", engine.variable())],
    };
    vec![engine.name.into(), opens.join(", "), engine.devices.join(", "), version, engine.tested().unwrap_or("-").into(), library]
}

fn row_of_target(name: &str, about: &str) -> Vec<String> {
    let opens = installed().filter(|engine| engine.opens.iter().any(|opens| opens.target == name));
    let engines: Vec<&str> = opens.map(|engine| engine.name).collect();
    vec![name.into(), about.into(), if engines.is_empty() { "attar".into() } else { engines.join(", ") }]
}

fn row_of_profile(profile: &Profile) -> Vec<String> {
    vec![profile.name.into(), profile.summary().into(), profile.target().into(), profile.weights()]
}

/// The values that a weight can take, before its scale.
fn values(grid: &dyn Grid) -> String {
    match grid.levels() {
        Levels::Even => "evenly spaced".into(),
        Levels::Learned => "learned for each row".into(),
        Levels::Table(values) => {
            let finite = || values.iter().copied().filter(|value| value.is_finite());
            let [least, most] = [finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max)];
            format!("a table of {} from {least} to {most}", finite().count())
        }
    }
}
