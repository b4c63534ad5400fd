//! What a run needs and may not find: texts and engines.

use attar_compress::Calibration;
use attar_eval::Engine;

use crate::{Engines, Error, Eval, Recipe, Result};

/// What a run cannot end well without is known before hours of work, not after.
pub(crate) fn check_needs(recipe: &Recipe, engines: &Engines) -> Result<()> {
    let key = |text: &Calibration| if text.path.is_some() { "data.calibration.path" } else { "data.calibration.sources" };
    let calibration = recipe.calibration().into_iter().flat_map(|text| {
        let key = key(text);
        text.files().into_iter().map(move |path| ("calibration", path, key))
    });
    let training = recipe.training().map(|text| ("training", text.path.clone(), "data.train.path"));
    for (what, path, key) in calibration.chain(training) {
        if let Err(e) = std::fs::File::open(&path) {
            let error = Error::input(format!("cannot read the {what} text `{}`", path.display())).because(&e);
            return Err(recipe.document.place(error, key));
        }
    }
    for eval in &recipe.evals {
        for file in eval.task.files() {
            if let Err(e) = std::fs::File::open(&file) {
                let error = Error::input(format!("eval `{}` cannot read `{}`", eval.name, file.display())).because(&e);
                return Err(recipe.document.place(error, &format!("{}.data", eval.key)));
            }
        }
        // A gate will say so in the report instead.
        for engine in eval.engines().filter(|engine| eval.required && !judged(recipe, eval, engine)) {
            engines.find(engine).map_err(|error| recipe.document.place(error.into(), &format!("{}.runners", eval.key)))?;
        }
    }
    for wanted in &recipe.predictions {
        let judged = recipe.gates.iter().any(|gate| gate.runner == wanted.compiler.name);
        if wanted.predict.required && !judged {
            let place = |error: attar_eval::Error| recipe.document.place(error.into(), &format!("{}.compiler", wanted.key));
            engines.find(wanted.compiler).map_err(place)?;
        }
    }
    Ok(())
}

/// Whether a gate is about what an engine measured.
fn judged(recipe: &Recipe, eval: &Eval, engine: &Engine) -> bool {
    recipe.gates.iter().any(|gate| gate.eval == eval.name && gate.runner == engine.name)
}

/// What a run needs and this machine does not have.
pub(crate) fn missing(recipe: &Recipe, engines: &Engines) -> Vec<String> {
    let mut missing = Vec::new();
    for eval in &recipe.evals {
        for file in eval.task.files() {
            if !file.exists() {
                missing.push(format!("eval `{}`: `{}` does not exist", eval.name, file.display()));
            }
        }
        for engine in eval.engines() {
            let Err(error) = engines.find(engine) else { continue };
            let consequence = match (judged(recipe, eval, engine), eval.required) {
                (true, _) => "a gate on it would fail as not run",
                (false, true) => "the run would not start",
                (false, false) => "it would be reported as not run",
            };
            missing.push(format!("eval `{}`: {error}; {consequence}", eval.name));
        }
    }
    for wanted in &recipe.predictions {
        missing.extend(engines.find(wanted.compiler).err().map(|error| format!("prediction for {}: {error}", wanted.device())));
    }
    missing.dedup();
    missing
}
