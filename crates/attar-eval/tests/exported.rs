//! What we write, in the engines that say they open it: every tiny model of every target opens, and in exact mode its
//! outputs are those of the reference.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use attar_eval::{Artifact, ENGINES, Installation, Mode, Output, Places, Reference, Runner, Window, outputs};
use attar_export::{Content, Input, Side};
use attar_graph::Op;
use attar_model::Model;

fn skip(reason: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Every small checkpoint of the repository.
fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    assert!(models.len() > 5, "{models:?}");
    models
}

/// Tokens that every vocabulary has.
fn windows() -> [Window; 2] {
    let window = |from: u32, to: u32| Window { tokens: (from..to).map(|i| i * 7 % 60 + 4).collect(), scored: 0..1 };
    [window(0, 20), window(3, 12)]
}

fn rows(runner: &dyn Runner, output: Output) -> Vec<f32> {
    let windows = windows();
    let mut rows = runner.start(output.into(), &windows, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let (mut all, mut part) = (Vec::new(), Vec::new());
    for (at, window) in windows.iter().enumerate() {
        let count = if output == Output::Logits { window.tokens.len() } else { 1 };
        rows.rows(at, 0..count, &mut part).unwrap_or_else(|error| panic!("{error}"));
        all.append(&mut part);
    }
    all
}

/// The largest share of its largest output by which an engine may be off: f32 sums in another order.
const SAME: f32 = 2e-5;

/// The same of an engine that has no exact mode, and computes in f16.
const ROUNDED: f32 = 3e-2;

/// What belongs to a model, with what runtimes for texts ask for.
fn side(model: &Model) -> Side {
    let text = |text: &str| Content::Text(text.into());
    let files = [("tokenizer.json", text("{}")), ("generation_config.json", text("{\"eos_token_id\": 3}"))];
    Side { context: model.config.context, files: files.into(), ..Side::default() }
}

/// Whether positions of a long text are turned in another way, which an engine that reads its beginning first cannot know.
fn turns_by_length(model: &Model) -> bool {
    model.graph.nodes().iter().any(|node| matches!(&node.op, Op::Rope(rope) if rope.longest_short().is_some()))
}

fn agrees(model: &Model, folder: &Path, installation: &Installation) -> f32 {
    let output =
        [Output::Logits, Output::Embedding].into_iter().find(|output| output.of(&outputs(&model.graph)).is_ok()).unwrap();
    let host = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("engine");
    let mut artifact = Artifact::new(installation.clone(), folder, installation.engine.modes[0], host);
    artifact.threads = Some(1);
    artifact.timeout = Duration::from_secs(120);
    let (wanted, found) = (rows(&Reference::new(model), output), rows(&artifact, output));
    assert_eq!(wanted.len(), found.len());
    let largest = wanted.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn every_model_of_every_target_opens_and_agrees() {
    let places = Places::read(ENGINES.iter().copied(), |_| None, |name| std::env::var_os(name));
    let installed: Vec<Installation> = ENGINES
        .iter()
        .filter_map(|engine| places.find(engine).map_err(|error| skip(format!("{error}; {}", error.hint().unwrap()))).ok())
        .collect();
    let mut wrong = Vec::new();
    for path in models() {
        let model = Model::open(&path).unwrap();
        for target in attar_export::TARGETS {
            let engines =
                installed.iter().filter(|installation| installation.engine.opens.iter().any(|opens| opens.target == target.name));
            let engines: Vec<&Installation> = engines.collect();
            if engines.is_empty() {
                continue;
            }
            let format = target.default_format().expect("the suite knows no option that has to be given");
            if format.needs_plans() {
                continue;
            }
            if let Err(refusal) = format.check(&model.graph) {
                skip(format!("{} does not take {}: {refusal}", target.name, path.display()));
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let input = Input { graph: &model.graph, source: &*model.source, side: &side(&model) };
            format.write(&input, folder.path(), &mut |_, _| {}).unwrap();
            let in_parts = |engine: &&&Installation| !engine.engine.modes.contains(&Mode::Exact);
            for engine in engines.iter().filter(|engine| !(in_parts(engine) && turns_by_length(&model))) {
                let off = agrees(&model, folder.path(), engine);
                let bound = if engine.engine.modes.contains(&Mode::Exact) { SAME } else { ROUNDED };
                if off.is_nan() || off >= bound {
                    wrong.push(format!("{} in {} of {}: off by {off}", path.display(), target.name, engine.engine.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn engines_open_targets_that_exist() {
    for engine in ENGINES {
        for opens in engine.opens {
            assert!(attar_export::TARGETS.iter().any(|target| target.name == opens.target), "{}: {}", engine.name, opens.target);
        }
    }
}
