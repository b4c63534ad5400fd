//! `attar tile M,K,N`: how one product is cut for a device.

use std::process::ExitCode;

use attar_compile::{
    Compile, Element, lower_bound,
    schedule::Goal,
    tile::{Product, Tiling, pareto, search},
};
use attar_recipe::Error;
use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValuesParser};
use serde_json::json;

use super::{Verb, draw};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Tile;

impl Verb for Tile {
    fn name(&self) -> &'static str {
        "tile"
    }

    fn command(&self) -> Command {
        Command::new("tile")
            .visible_alias("tile-for-sram")
            .about("Cut a product for a device's SRAM")
            .long_about(
                "Cut the product of activations [M, K] and weights [K, N] for a device's SRAM: the best tiles, loop order and \
                 what stays resident, its DRAM bytes beside the lower bound of any schedule, and its predicted cycles. \
                 Streamed operands are double-buffered, tiles are multiples of the device's array.",
            )
            .arg(Arg::new("product").value_name("M,K,N").help("Rows, depth and columns: `512,2048,2048`").required(true))
            .arg(
                Arg::new("weights")
                    .long("weights")
                    .value_name("BITS")
                    .help("Width of a weight")
                    .default_value("8")
                    .value_parser(clap::value_parser!(u32).range(2..=8)),
            )
            .arg(
                Arg::new("device")
                    .long("device")
                    .value_name("DEVICE")
                    .help("A shipped device or a device file")
                    .default_value("generic-npu"),
            )
            .arg(
                Arg::new("set")
                    .long("set")
                    .value_name("KEY=VALUE")
                    .help("Change a number of the device: `sram=256KiB`")
                    .action(ArgAction::Append),
            )
            .arg(
                Arg::new("goal")
                    .long("goal")
                    .value_name("GOAL")
                    .help("What is made small")
                    .default_value("dram")
                    .value_parser(PossibleValuesParser::new(["dram", "latency", "energy"])),
            )
            .arg(
                Arg::new("pareto")
                    .long("pareto")
                    .help("Show all that are best in some way: DRAM bytes, SRAM, cycles")
                    .action(ArgAction::SetTrue),
            )
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let text = arguments.get_one::<String>("product").expect("clap demands it");
        let sizes: Vec<u64> =
            text.split([',', 'x']).map_while(|part| part.trim().parse().ok()).filter(|n| *n > 0 && *n <= 1 << 24).collect();
        let [m, k, n] = sizes[..] else {
            return Err(
                Error::recipe(format!("`{text}` is no product")).hint("three sizes of at least 1: `512,2048,2048`".to_owned())
            );
        };
        let settings = Compile {
            device: arguments.get_one::<String>("device").expect("it has a default").clone(),
            set: arguments.get_many::<String>("set").into_iter().flatten().cloned().collect(),
            ..Compile::default()
        };
        let device = settings.device()?;
        let bits = *arguments.get_one::<u32>("weights").expect("it has a default");
        let width = device.numerics.weights.iter().copied().filter(|width| *width >= bits).min().unwrap_or(8);
        let rates = device.rates(width, 8)?;
        let weights = Element { bits: width, per: 1 };
        let product = Product::new(m, k, n, Element::INT8, weights).aligned([1, rates.array[1], rates.array[2]]);
        let limits = device.limits();
        let goal = match arguments.get_one::<String>("goal").map(String::as_str) {
            Some("latency") => Goal::Latency,
            Some("energy") => Goal::Energy,
            _ => Goal::Dram,
        };
        let found: Vec<Tiling> = match arguments.get_flag("pareto") {
            true => pareto(&product, &limits, &rates)?.into_iter().map(|(tiling, _)| tiling).collect(),
            false => vec![search(&product, &limits, &goal.objective(rates))?],
        };
        let bound = lower_bound(&product, limits.sram);
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|tiling| {
                let cost = tiling.cost(&product, &limits, &rates);
                vec![
                    format!("{:?}", tiling.order).to_lowercase(),
                    format!("{:?}", tiling.tile),
                    format!("{:?}", tiling.kept),
                    tiling.dram.total().to_string(),
                    format!("{:.3}", tiling.dram.total() as f64 / bound as f64),
                    tiling.sram.to_string(),
                    format!("{:.0}", cost.cycles),
                ]
            })
            .collect();
        if printer.json {
            let all: Vec<_> = found
                .iter()
                .map(|t| {
                    let cost = t.cost(&product, &limits, &rates);
                    json!({ "order": format!("{:?}", t.order).to_lowercase(), "tile": t.tile, "kept": t.kept, "slots": t.slots,
                            "dram_bytes": t.dram.total(), "sram_bytes": t.sram, "cycles": cost.cycles, "energy_pj": cost.energy })
                })
                .collect();
            printer.value(&json!({ "device": device.name, "product": [m, k, n], "weight_bits": width, "lower_bound": bound, "tilings": all }));
        } else {
            printer.data(&draw(&["order", "tile m, k, n", "kept x, w", "DRAM bytes", "/ bound", "SRAM bytes", "cycles"], &rows));
            printer.data(&format!(
                "lower bound of any schedule: {bound} bytes; {} has {} bytes of SRAM; streamed tiles double-buffered; cycles predicted",
                device.name, limits.sram
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
