//! `attar simulate PLAN [--data FILE]`: runs a compiled plan in simulation.

use std::{path::PathBuf, process::ExitCode};

use attar_compile::{
    Plan,
    report::{MARK, most_assumed, named, rests_on, waits_for},
    simulate::{Simulation, time},
};
use attar_recipe::{Error, data_beside, prove_plan, read_plan, read_proof, unusable};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::{
    Verb,
    compile::{check_traces, trace_flags, write_traces},
    draw, path, path_argument,
};
use crate::{environment::Environment, printer::Printer};

pub(super) struct Simulate;

impl Verb for Simulate {
    fn name(&self) -> &'static str {
        "simulate"
    }

    fn command(&self) -> Command {
        let command = Command::new("simulate")
            .about("Run a compiled plan in simulation, to prove it or to predict its cost")
            .long_about(
                "Run a compiled plan in simulation, to prove it or to predict its cost.\n\n\
                 With a proof's data file, the simulator checks every memory access (bounds, alignment, reads of unwritten \
                 bytes, races) and compares every result with the reference implementation, bit for bit. Without one, it only \
                 counts cycles and bytes. All times and energies are predictions.",
            )
            .arg(path_argument("PLAN", "A plan file written by `compile`"))
            .arg(
                Arg::new("data")
                    .long("data")
                    .value_name("FILE")
                    .help("Data file of a proof [default: PLAN with `.data` in place of `.plan`, if that file exists]")
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .arg(Arg::new("text").long("text").help("Print the plan as text, and do nothing else").action(ArgAction::SetTrue));
        trace_flags(command)
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar simulate plans/compiled/prefill.proof.plan",
            "attar simulate plans/compiled/decode.plan",
            "attar simulate plans/compiled/decode.plan --text",
        ]
    }

    fn run(&self, arguments: &ArgMatches, _: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let path = path(arguments, "plan");
        check_traces(arguments, path)?;
        if let Some(data) = arguments.get_one::<PathBuf>("data") {
            check_traces(arguments, data)?;
        }
        let plan = read_plan(path)?;
        if arguments.get_flag("text") {
            printer.data(&plan.to_string());
            return Ok(ExitCode::SUCCESS);
        }
        write_traces(arguments, || Ok(vec![plan.clone()]))?;
        let data = arguments.get_one::<PathBuf>("data").cloned().or_else(|| data_beside(path));
        let simulation = match &data {
            Some(data) => prove_plan(&path.display().to_string(), &plan, &read_proof(data)?)?,
            None => time(&plan, &plan.rates).map_err(|e| unusable(path, &e))?,
        };
        show(&plan, &simulation, data.is_some(), printer);
        Ok(ExitCode::SUCCESS)
    }
}

fn show(plan: &Plan, simulation: &Simulation, proven: bool, printer: &Printer) {
    let (seconds, joules) = (simulation.latency(&plan.rates), simulation.energy(&plan.rates));
    let rests = rests_on(plan);
    if printer.json {
        let calls: Vec<_> = simulation
            .calls
            .iter()
            .map(|call| {
                let [activation_loads, weight_loads, _, stores] = call.waits;
                let waits = json!({ "activation_loads": activation_loads, "weight_loads": weight_loads, "stores": stores });
                json!({ "name": call.name, "label": named(&call.name), "cycles": call.end - call.start, "compute": call.compute,
                        "stalled": call.stalled, "waits": waits, "waits_for": waits_for(call), "read": call.read, "written": call.written, "transfers": call.transfers, "macs": call.macs })
            })
            .collect();
        return printer.value(&json!({
            "device": plan.device, "title": plan.title, "proven": proven, "latency": seconds, "energy": joules,
            "cycles": simulation.cycles, "dram_bytes": simulation.dram(), "macs": simulation.macs(),
            "peak_sram": simulation.sram_peak, "rests_on": rests, "calls": calls,
        }));
    }
    let rows: Vec<Vec<String>> = simulation
        .calls
        .iter()
        .map(|call| {
            let cycles = call.end.saturating_sub(call.start).max(1);
            vec![
                named(&call.name),
                cycles.to_string(),
                format!("{:.0}%", 100.0 * call.compute as f64 / cycles as f64),
                waits_for(call).into(),
                attar_recipe::bytes(call.read[0]),
                attar_recipe::bytes(call.read[1]),
                attar_recipe::bytes(call.written),
                call.macs.to_string(),
            ]
        })
        .collect();
    let head = ["kernel", "cycles", "computing", "waits for", "activations read", "weights read", "written", "MACs"];
    printer.data(&draw(&head, &rows));
    let word = if proven {
        "proven: every result equals the reference bit for bit"
    } else {
        "not proven (no data file): only cycles and bytes were counted"
    };
    let most = rests.as_deref().and_then(most_assumed);
    let mark = if most.is_some() { MARK } else { "" };
    printer.data(&format!(
        "{}: {word}\npredicted: {} cycles{mark}, {seconds:.6} s{mark}, {joules:.6} J{mark}, {} of DRAM traffic, {} of SRAM at the peak",
        plan.title,
        simulation.cycles,
        attar_recipe::bytes(simulation.dram()),
        attar_recipe::bytes(simulation.sram_peak),
    ));
    if let Some(most) = most {
        printer.data(&format!("{MARK} {most}"));
    }
}
