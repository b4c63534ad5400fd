//! What a run needs and may not find: texts and engines.

use crate::{Engines, Error, Recipe, Result, RunnerKind};

/// What a run cannot end well without is known before hours of work, not after.
pub(crate) fn check_needs(recipe: &Recipe, engines: &Engines) -> Result<()> {
    if let Some(calibration) = recipe.calibration()
        && let Err(e) = std::fs::File::open(&calibration.path)
    {
        let error = Error::input(format!("cannot read the calibration text `{}`", calibration.path.display())).because(&e);
        return Err(recipe.document.place(error, "data.calibration.path"));
    }
    for eval in &recipe.evals {
        for file in eval.task.files() {
            if let Err(e) = std::fs::File::open(&file) {
                let error = Error::input(format!("eval `{}` cannot read `{}`", eval.name, file.display())).because(&e);
                return Err(recipe.document.place(error, &format!("{}.data", eval.key)));
            }
        }
        let wants_engine = eval.required && eval.runners.iter().any(|(runner, _)| *runner == RunnerKind::OnnxRuntime);
        let judged = recipe.gates.iter().any(|gate| gate.eval == eval.name && gate.runner == "onnxruntime");
        // A gate will say so in the report instead.
        if wants_engine && engines.onnxruntime.is_none() && !judged {
            let error = Error::from(engines.onnxruntime_missing());
            return Err(recipe.document.place(error, &format!("{}.runners", eval.key)));
        }
    }
    Ok(())
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
        let wants_engine = eval.runners.iter().any(|(runner, _)| *runner == RunnerKind::OnnxRuntime);
        if wants_engine && engines.onnxruntime.is_none() {
            let judged = recipe.gates.iter().any(|gate| gate.eval == eval.name && gate.runner == "onnxruntime");
            let consequence = match (judged, eval.required) {
                (true, _) => "a gate on it would fail as not run",
                (false, true) => "the run would not start",
                (false, false) => "it would be reported as not run",
            };
            missing.push(format!("eval `{}`: ONNX Runtime is not on this machine; {consequence}", eval.name));
        }
    }
    missing.dedup();
    missing
}
