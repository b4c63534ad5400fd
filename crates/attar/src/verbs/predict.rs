//! `attar predict ARTIFACT`: what a vendor's compiler says of an artifact, without the device.

use std::{path::Path, process::ExitCode};

use attar_eval::{Ask, COMPILERS, Mode, compiler};
use attar_recipe::{Error, ErrorKind, Existing, beyond};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::{Verb, path, path_argument};
use crate::{
    environment::{Environment, engine_flags},
    printer::Printer,
};

pub(super) struct Predict;

impl Verb for Predict {
    fn name(&self) -> &'static str {
        "predict"
    }

    fn command(&self) -> Command {
        let number = |name: &'static str, default: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name("N")
                .default_value(default)
                .value_parser(clap::value_parser!(u32).range(1..))
                .help(help)
        };
        let command = Command::new("predict")
            .about("Compile an artifact with a vendor's compiler and show what it predicts for a device")
            .long_about("Compile an artifact with a vendor's compiler and show what it predicts for a device.\n\nNothing is measured and no device is needed. `[[predict]]` of a recipe asks the same, for its report and gates.")
            .arg(path_argument("ARTIFACT", "The folder of an artifact"))
            .arg(
                Arg::new("compiler")
                    .long("compiler")
                    .value_name("NAME")
                    .help("Compiler [default: the first that opens the artifact]")
                    .value_parser(PossibleValuesParser::new(COMPILERS.iter().map(|compiler| compiler.name))),
            )
            .arg(
                Arg::new("device")
                    .long("device")
                    .value_name("NAME")
                    .help("Device, by the compiler's own name for it; `attar engines` lists them [default: its first]"),
            )
            .arg(number("prompt", "1024", "Tokens of the longest prompt"))
            .arg(number("answer", "128", "Tokens of the longest answer"));
        engine_flags(command)
    }

    fn examples(&self) -> &'static [&'static str] {
        &["attar predict npu --device 4000 --prompt 128 --answer 32"]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let subject = path(arguments, "artifact");
        let compiler = chosen(subject, arguments)?;
        let device = arguments.get_one::<String>("device").map(|device| compiler.device(device)).transpose();
        let device = device.map_err(|error| Error { kind: ErrorKind::Recipe, ..error.into() })?;
        Existing::check_whole(subject)?;
        let existing = Existing::open(subject)?;
        let artifact = existing.run_by(compiler, Mode::Default, &environment.engines())?.on(device)?;
        let tokens = |name: &str| *arguments.get_one::<u32>(name).expect("it has a default") as usize;
        let ask = Ask { prompt: tokens("prompt"), answer: tokens("answer") };
        let mut predicted = artifact.predict(ask)?;
        predicted.notes.extend(beyond(ask, existing.config.context));
        if printer.json {
            let mut value = serde_json::json!({ "compiler": compiler.name, "device": artifact.device, "ask": ask });
            value["predicted"] = serde_json::json!(predicted);
            printer.value(&value);
            return Ok(ExitCode::SUCCESS);
        }
        let milliseconds =
            |seconds: Option<f64>| seconds.map_or("not known".into(), |seconds| format!("{:.3} ms", 1e3 * seconds));
        printer.data(&format!("device    {} of {}", artifact.device, compiler.title));
        printer.data(&format!("prompt    {} for up to {} tokens", milliseconds(predicted.latency), tokens("prompt")));
        printer.data(&format!("token     {}", milliseconds(predicted.decode_latency)));
        for (name, bytes) in [
            ("SRAM", predicted.peak_sram),
            ("DRAM", predicted.peak_dram),
            ("traffic", predicted.dram_bytes),
            ("compiled", predicted.compiled_bytes),
        ] {
            if let Some(bytes) = bytes {
                printer.data(&format!("{name:<9} {bytes} bytes"));
            }
        }
        predicted.notes.iter().for_each(|note| printer.data(&format!("note      {note}")));
        Ok(ExitCode::SUCCESS)
    }
}

/// The compiler that is to open what is at `path`.
fn chosen(path: &Path, arguments: &ArgMatches) -> Result<&'static attar_eval::Engine, Error> {
    let named = arguments.get_one::<String>("compiler").map(|name| compiler(name)).transpose()?;
    let compiler = named
        .or_else(|| COMPILERS.iter().copied().find(|compiler| Existing::check(path, compiler).is_ok()))
        .unwrap_or(COMPILERS[0]);
    Existing::check(path, compiler)?;
    Ok(compiler)
}
