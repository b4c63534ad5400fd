//! `attar tile M,K,N` or `attar tile MODEL`: how one product, or every product of a model, is cut for a device; of a model with
//! `--out`, the step as every other.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use attar_compile::{
    Compile, Element, Tile as Settings, lower_bound,
    report::{ProductReport, TilingReport},
    tile::{Product, Tiling, pareto, search},
};
use attar_model::Model;
use attar_recipe::{Error, step::cut_products, verb_schema};
use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Verb, draw, path, print_recipe_argument, run_text, step};
use crate::{environment::Environment, printer::Printer, settings};

pub(super) struct Tile;

/// Of the step and of the verb.
const NAME: &str = "tile";

/// What makes no sense for a product alone.
const OF_MODELS: [&str; 4] = ["seq", "decode", "out", "print-recipe"];

impl Verb for Tile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        let command = Command::new(NAME)
            .visible_alias("tile-for-sram")
            .about("Cut a product, or all of a model, for a device's SRAM")
            .long_about(
                "Cut the product of activations [M, K] and weights [K, N] for a device's SRAM: the best tiles, loop order and \
                 what stays resident, its DRAM bytes beside the lower bound of any schedule, and its predicted cycles. \
                 Streamed operands are double-buffered, tiles are multiples of the device's array. Of a model whose weights \
                 and activations are in integers, every distinct product is cut; with `--out`, the step `tile` runs on its own \
                 and writes the folder `tiled`.",
            )
            .arg(
                Arg::new("model")
                    .value_name("M,K,N|MODEL")
                    .help("Rows, depth and columns, `512,2048,2048`; or a checkpoint")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("weights")
                    .long("weights")
                    .value_name("BITS")
                    .help("Width of a weight of the product")
                    .default_value("8")
                    .value_parser(clap::value_parser!(u32).range(2..=8)),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("DIR")
                    .help("Folder to write, made if need be")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(print_recipe_argument().requires("out"));
        settings::flags(command, &schema())
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let what = path(arguments, "model");
        let text = what.display().to_string();
        let settings = Settings::deserialize(settings::table(&schema(), arguments))
            .map_err(|error| Error::recipe("the settings cannot be used").because(&error))?;
        match sizes(&text) {
            Some(product) => {
                refuse(arguments, &OF_MODELS, "a model")?;
                one(product, *arguments.get_one("weights").expect("it has a default"), &settings, printer)?;
            }
            None if !what.exists() => {
                let hint = "three sizes of at least 1, like `512,2048,2048`, or the path of a checkpoint".to_owned();
                return Err(Error::recipe(format!("`{text}` is no product, and no model")).hint(hint));
            }
            None => {
                refuse(arguments, &["weights"], "a product")?;
                if arguments.contains_id("out") {
                    let recipe = step::recipe_of(NAME, arguments, &[]);
                    return run_text(&format!("attar {NAME} {text}"), &recipe, arguments, environment, printer);
                }
                all(what, &settings, printer)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn schema() -> Value {
    verb_schema(NAME).expect("a verb of a step that exists")
}

/// `[m, k, n]`, if a text says so.
fn sizes(text: &str) -> Option<[u64; 3]> {
    let size = |part: &str| part.trim().parse().ok().filter(|n| *n > 0 && *n <= 1 << 24);
    let sizes: Option<Vec<u64>> = text.split([',', 'x']).map(size).collect();
    sizes?.try_into().ok()
}

/// Flags that were given and are for something else.
fn refuse(arguments: &ArgMatches, flags: &[&str], of: &str) -> Result<(), Error> {
    let given = |flag: &&&str| arguments.value_source(flag) == Some(ValueSource::CommandLine);
    match flags.iter().find(given) {
        Some(flag) => Err(Error::recipe(format!("`--{flag}` is for {of}"))),
        None => Ok(()),
    }
}

/// Cuts one product.
fn one([m, k, n]: [u64; 3], bits: u32, settings: &Settings, printer: &Printer) -> Result<(), Error> {
    let device = Compile { device: settings.device.clone(), set: settings.set.clone(), ..Compile::default() }.device()?;
    let width = device.numerics.weights.iter().copied().filter(|width| *width >= bits).min().unwrap_or(8);
    let rates = device.rates(width, 8)?;
    let weights = Element { bits: width, per: 1 };
    let product = Product::new(m, k, n, Element::INT8, weights).aligned([1, rates.array[1], rates.array[2]]);
    let limits = device.limits();
    let found: Vec<Tiling> = match settings.pareto {
        true => pareto(&product, &limits, &rates)?.into_iter().map(|(tiling, _)| tiling).collect(),
        false => vec![search(&product, &limits, &settings.goal.objective(rates))?],
    };
    let bound = lower_bound(&product, limits.sram);
    let tilings: Vec<TilingReport> =
        found.iter().map(|tiling| TilingReport::new(tiling, &product, &limits, &rates, bound)).collect();
    if printer.json {
        printer.value(&json!({
            "device": device.name, "product": [m, k, n], "weight_bits": width, "lower_bound": bound, "tilings": tilings,
        }));
    } else {
        printer.data(&draw(TilingReport::HEAD, &tilings.iter().map(TilingReport::row).collect::<Vec<_>>()));
        printer.data(&format!(
            "lower bound of any schedule: {bound} bytes; {} has {} bytes of SRAM; streamed tiles double-buffered",
            device.name, limits.sram
        ));
    }
    Ok(())
}

/// Cuts every distinct product of a model.
fn all(model: &Path, settings: &Settings, printer: &Printer) -> Result<(), Error> {
    let tiled = cut_products(settings, &Model::open(model)?)?;
    if printer.json {
        printer.value(&tiled);
    } else {
        let table = ProductReport::table(&tiled.products);
        printer.data(&draw(table.head, &table.rows));
        printer.data(&format!("{} has {} bytes of SRAM; streamed tiles double-buffered", tiled.device, tiled.sram));
    }
    Ok(())
}
