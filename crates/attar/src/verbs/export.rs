//! `attar export MODEL --target onnx --out DIR`.

use std::process::ExitCode;

use attar_export::C;
use attar_recipe::{Error, export_plans, verb_schema};
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};

use super::{
    MODEL, Verb, ignore_argument, ignored, one_shot, out_argument, path, path_argument, print_recipe_argument, run_text,
};
use crate::{environment::Environment, printer::Printer, settings};

pub(super) struct Export;

impl Verb for Export {
    fn name(&self) -> &'static str {
        "export"
    }

    fn command(&self) -> Command {
        let targets = attar_export::TARGETS.iter().map(|target| target.name);
        let command = Command::new("export")
            .about("Write a model in a format that other runtimes load, and verify every weight of the written files")
            .arg(path_argument("MODEL", MODEL))
            .arg(ignore_argument())
            .arg(
                Arg::new("target")
                    .long("target")
                    .value_name("TARGET")
                    .help("Format to write; `--for` chooses one, too")
                    .required_unless_present("for")
                    .value_parser(PossibleValuesParser::new(targets)),
            )
            .arg(out_argument())
            .arg(print_recipe_argument());
        settings::flags(command, &schema())
    }

    fn examples(&self) -> &'static [&'static str] {
        &[
            "attar export int4 --target onnx --out onnx",
            "attar export int4 --for intel-npu --out npu",
            "attar export int4 --target onnx --layout matmul-nbits --out onnx-nbits",
            "attar export plans --target c --out firmware",
        ]
    }

    fn run(&self, arguments: &ArgMatches, environment: &Environment, printer: &Printer) -> Result<ExitCode, Error> {
        let target = arguments.get_one::<String>("target");
        if target.is_some_and(|target| target == PLANS) {
            return export_c(arguments, printer);
        }
        let target = target.map(|target| ("target".to_owned(), target.as_str().into()));
        let mut export: toml::Table = target.into_iter().chain([("folder".to_owned(), ".".into())]).collect();
        export.extend(settings::table(&schema(), arguments));
        let model = path(arguments, "model");
        let text = one_shot(model, &ignored(arguments), path(arguments, "out"), &[("export", export)]);
        let chosen = ["target", "for"].into_iter().filter_map(|flag| Some((flag, arguments.get_one::<String>(flag)?)));
        let chosen: String = chosen.map(|(flag, word)| format!(" --{flag} {word}")).collect();
        run_text(&format!("attar export {}{chosen}", model.display()), &text, arguments, environment, printer)
    }
}

/// The target that is made from plans, not from a model.
pub(super) const PLANS: &str = "c";

/// Writes the C of a folder of plans.
fn export_c(arguments: &ArgMatches, printer: &Printer) -> Result<ExitCode, Error> {
    let (from, out) = (path(arguments, "model"), path(arguments, "out"));
    let options = settings::table(&schema(), arguments);
    if arguments.get_flag("print-recipe") {
        let hint = "in the recipe that compiles the model, `[[export]]` with `target = \"c\"` stands behind the step `compile`";
        return Err(Error::recipe("a folder of plans is exported without a recipe").hint(hint.to_owned()));
    }
    let unfit = options.keys().find(|key| *key != "weights");
    if let Some(key) = unfit {
        return Err(Error::recipe(format!("the target `{PLANS}` has no option `{key}`")));
    }
    let options: C = options.try_into().map_err(|error: toml::de::Error| Error::recipe(error.message().to_owned()))?;
    let (artifact, compared) =
        export_plans(from, &options, out, &format!("attar export {} --target {PLANS}", from.display()), &mut |_, _| ())?;
    if printer.json {
        printer.value(&serde_json::json!({ "out": out, "artifact": artifact, "verified_weights": compared }));
        return Ok(ExitCode::SUCCESS);
    }
    artifact.notes.iter().for_each(|note| printer.note(&format!("note: {note}")));
    let bytes: u64 = artifact.files.iter().map(|file| file.bytes).sum();
    let (files, bytes, quoted) = (artifact.files.len(), attar_recipe::bytes(bytes), quoted(out));
    let out = out.display();
    printer.data(&format!(
        "{files} files, {bytes} in `{out}`; {compared} weights and constants are those of the plans\nnext: make -C {quoted}"
    ));
    Ok(ExitCode::SUCCESS)
}

/// As a word of a shell.
fn quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._/-+=:@".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The settings of a target, without `folder`, for which there is `--out`, and without `variant`, of which there is one.
fn schema() -> serde_json::Value {
    let mut schema = verb_schema("export").expect("exports have settings");
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.remove("folder");
        properties.remove("variant");
    }
    schema
}
