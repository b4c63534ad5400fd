//! `attar tile M,K,N` or `attar tile MODEL`: tiles one matrix product, or every product of a model, for a device; for a model,
//! `--out` runs the step.

use std::{path::PathBuf, process::ExitCode};

use attar_compile::{
    Compile, Element, Tile as Settings, lower_bound,
    report::{ProductReport, TilingReport},
    tile::{Product, Tiling, pareto, search},
};
use attar_model::Model;
use attar_recipe::{
    Error,
    step::{cut_products, refused_by_device},
    verb_schema,
};
use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Verb, draw, ignore_argument, open, path, print_recipe_argument, run_text, step};
use crate::{environment::Environment, printer::Printer, settings};

pub(super) struct Tile;

/// Name of the step and of the verb.
const NAME: &str = "tile";

/// Flags that apply to models only.
const OF_MODELS: [&str; 5] = ["seq", "decode", "out", "ignore", "print-recipe"];

impl Verb for Tile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn command(&self) -> Command {
        let command = Command::new(NAME)
            .visible_alias("tile-for-sram")
            .about("Tile a matrix product, or all products of a model, for a device's SRAM")
            .long_about(
                "Tile a matrix product, or all products of a model, for a device's SRAM.\n\n\
                 For a product of activations [M, K] and weights [K, N], finds the best tile sizes, loop order and resident \
                 operands, and prints DRAM traffic next to the lower bound of any schedule, SRAM and predicted cycles. Streamed \
                 operands are double-buffered; tiles are multiples of the device's array. For a model with weights and \
                 activations quantized to integers, does so for every distinct product; `--out` runs the step `tile` and writes \
                 the folder `tiled`.",
            )
            .arg(
                Arg::new("model")
                    .value_name("M,K,N|MODEL")
                    .help("Sizes of a product, such as `512,2048,2048`, or a checkpoint")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(
                Arg::new("weights")
                    .long("weights")
                    .value_name("BITS")
                    .help("Bits per weight, for a product")
                    .default_value("8")
                    .value_parser(clap::value_parser!(u32).range(2..=8)),
            )
            .arg(
                Arg::new("out")
                    .long("out")
                    .value_name("DIR")
                    .help("Output folder, created if it does not exist")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(ignore_argument())
            .arg(print_recipe_argument().requires("out"));
        settings::flags(command, &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar tile 512,2048,2048 --device ethos-u85-1024 --weights 4",
            "attar tile 512,2048,2048 --set sram=256KiB --pareto",
            "attar tile static --seq 64",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let what = path(arguments, "model");
        let text = what.display().to_string();
        let settings = Settings::deserialize(settings::table(&schema(), arguments))
            .map_err(|error| Error::recipe("invalid settings").because(&error))?;
        match sizes(&text) {
            Some(product) => {
                refuse(arguments, &OF_MODELS, "models")?;
                one(product, *arguments.get_one("weights").expect("it has a default"), &settings, printer)?;
            }
            None if !what.exists() => {
                let hint = "give three sizes of at least 1, such as `512,2048,2048`, or the path of a checkpoint".to_owned();
                return Err(Error::recipe(format!("`{text}` is neither a product nor a model")).hint(hint));
            }
            None => {
                refuse(arguments, &["weights"], "products")?;
                if arguments.contains_id("out") {
                    let recipe = step::recipe_of(NAME, arguments, &[]);
                    return run_text(&format!("attar {NAME} {text}"), &recipe, arguments, environment, printer);
                }
                all(&open(what, arguments)?, &settings, printer)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn schema() -> Value {
    verb_schema(NAME).expect("a verb of a step that exists")
}

/// `[m, k, n]`, if the text is three sizes.
fn sizes(text: &str) -> Option<[u64; 3]> {
    let size = |part: &str| part.trim().parse().ok().filter(|n| *n > 0 && *n <= 1 << 24);
    let sizes: Option<Vec<u64>> = text.split([',', 'x']).map(size).collect();
    sizes?.try_into().ok()
}

/// An error if a flag was given that applies only to `of`.
fn refuse(arguments: &ArgMatches, flags: &[&str], of: &str) -> Result<(), Error> {
    let given = |flag: &&&str| arguments.value_source(flag) == Some(ValueSource::CommandLine);
    match flags.iter().find(given) {
        Some(flag) => Err(Error::recipe(format!("`--{flag}` applies to {of} only"))),
        None => Ok(()),
    }
}

/// Tiles one product.
fn one([m, k, n]: [u64; 3], bits: u32, settings: &Settings, printer: &Printer) -> Result<(), Error> {
    let device = Compile { device: settings.device.clone(), set: settings.set.clone(), ..Compile::default() };
    let device = device.device().map_err(refused_by_device)?;
    let width = device.numerics.weights.iter().copied().filter(|width| *width >= bits).min().unwrap_or(8);
    let rates = device.rates(width, 8).map_err(refused_by_device)?;
    let weights = Element { bits: width, per: 1 };
    let product = Product::new(m, k, n, Element::INT8, weights);
    let product = product.aligned([1, device.can.depth(rates.array[1], k), rates.array[2]]);
    let limits = device.limits();
    let found: Vec<Tiling> = match settings.pareto {
        true => pareto(&product, &limits, &rates).map(|front| front.into_iter().map(|(tiling, _)| tiling).collect()),
        false => search(&product, &limits, &settings.goal.objective(rates)).map(|best| vec![best]),
    }
    .map_err(refused_by_device)?;
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
            "lower bound of any schedule: {bound} bytes of DRAM traffic; {} has {} bytes of SRAM; streamed tiles are double-buffered",
            device.name, limits.sram
        ));
    }
    Ok(())
}

/// Tiles every distinct product of a model.
fn all(model: &Model, settings: &Settings, printer: &Printer) -> Result<(), Error> {
    let tiled = cut_products(settings, model)?;
    if printer.json {
        printer.value(&tiled);
    } else {
        let table = ProductReport::table(&tiled.products);
        printer.data(&draw(table.head, &table.rows));
        printer.data(&format!("{} has {} bytes of SRAM; streamed tiles are double-buffered", tiled.device, tiled.sram));
    }
    Ok(())
}
