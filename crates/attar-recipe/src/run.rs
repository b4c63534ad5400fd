//! A recipe, done: claim the output, lock the inputs, run the steps, write and verify, measure, judge, report.

use std::collections::BTreeSet;

use attar_eval::{Evaluation, Status, Verdict};
use attar_graph::kernel::instruction_set;
use attar_tensor::{Digest, Keep};

use crate::{
    Engines, Error, Observer, Plan, PlannedVariant, Recipe, Report, Result, Variant, advice,
    coded::coded,
    data::described,
    extras::WrittenFolder,
    inputs::Inputs,
    json::{TOOL, json},
    lock::{self, Lock, LockMode},
    made::Made,
    manifest::Manifest,
    measure::{Measuring, Subject},
    model::Working,
    needs::check_needs,
    opened::Opened,
    output::Output,
    page,
    plan::{plan, plan_work},
    publish,
    report::{self, ModelReport, Timed},
    session::{Session, Texts, Workspace},
    step::WALKERS,
};

/// How to run.
pub struct Request<'a> {
    /// What to do about the lock file.
    pub lock: LockMode,
    /// What the machine has.
    pub engines: &'a Engines,
    /// Receives progress.
    pub observer: &'a dyn Observer,
    /// Bytes of memory that the run may take.
    pub max_memory: Option<u64>,
}

/// Runs a recipe to its report. A failed gate is no error: [`Report::passed`] tells.
pub fn run(recipe: &Recipe, request: &Request<'_>) -> Result<Report> {
    let inputs = Opened::inputs(recipe)?;
    inputs.during(|| run_on(&inputs, recipe, request))
}

fn run_on(inputs: &Inputs, recipe: &Recipe, request: &Request<'_>) -> Result<Report> {
    let planned = plan_within(recipe, request)?;
    let opened = Opened::of(recipe)?;
    let lock = lock_inputs(recipe, inputs, request)?;
    let output = claim_output(recipe)?;
    let workspace = Workspace::open(recipe.store(&output), WALKERS, inputs.clone())?;
    let texts = opened.windows(recipe, &workspace.session(opened.model(), request.observer))?;
    let mut notes = notes_of_texts(recipe, &opened, &texts);
    notes.iter().for_each(|note| request.observer.note(note));
    let mut used: BTreeSet<Digest> = texts.written.iter().copied().collect();
    let workspace = workspace.reading(texts);
    let session = workspace.session(opened.model(), request.observer);
    let measuring =
        Measuring { recipe, engines: request.engines, opened: &opened, observer: request.observer, session: Some(&session) };
    notes.extend(measuring.overlaps()?);
    let (made, folders) = make_variants(recipe, &planned, &output, &session, &mut used)?;
    let (evals, timed) = measure_variants(&measuring, &made, &output, &mut used)?;
    let (of_times, gates) = judge(recipe, &[&evals[..], &timed[..]].concat());
    let timed = Timed::here(lock.recipe, timed, of_times);
    let mut report = Report {
        report: report::FORMAT,
        tool: TOOL.into(),
        recipe: recipe.owner(),
        recipe_digest: lock.recipe,
        passed: gates.iter().all(|verdict| verdict.status == Status::Passed),
        variants: made.iter().map(Made::report).collect(),
        model: describe_model(planned),
        instruction_set: (recipe.has_texts() || !evals.is_empty()).then(|| instruction_set().to_owned()),
        evals,
        gates,
        timed: (!timed.is_empty()).then_some(timed),
        notes,
        ways: Vec::new(),
    };
    let (ways, known) = advice::of(recipe, &report, request.engines);
    for (way, text) in ways {
        output.write(&way.recipe, text.as_bytes())?;
        report.ways.push(way);
    }
    report.notes.extend(known);
    session.check_inputs()?;
    keep_promises(&report, &Manifest::of(recipe.owner(), &lock, &report.model, &made, &folders), &output)?;
    clean_up(recipe, workspace, &used, &output)?;
    Ok(report)
}

/// Which texts activations are seen on, where the recipe does not say it alone, and how much of each.
fn notes_of_texts(recipe: &Recipe, opened: &Opened, texts: &Texts) -> Vec<String> {
    let Some(asked) = recipe.calibration().filter(|text| text.path.is_none()) else { return Vec::new() };
    let found: usize = texts.calibration_of.iter().map(|(_, windows)| windows).sum();
    let fewer = (found < asked.samples)
        .then(|| format!("calibration: {} windows were asked for, and the texts have {found}", asked.samples));
    [described(asked.length(opened.config()), &texts.calibration_of)].into_iter().chain(fewer).collect()
}

/// Measures what the evals of a recipe without steps, exports and gates ask for. Nothing is written and nothing kept.
pub fn evaluate(recipe: &Recipe, request: &Request<'_>) -> Result<Vec<Evaluation>> {
    let steps = recipe.variants.iter().any(|variant| !variant.steps.is_empty() || !variant.name.is_empty());
    if steps || !recipe.exports.is_empty() || !recipe.gates.is_empty() {
        return Err(Error::recipe("only a recipe of evals is measured without an output folder"));
    }
    let inputs = Opened::inputs(recipe)?;
    inputs.during(|| {
        plan_work(recipe, request.engines)?.check_memory(request.max_memory)?;
        check_needs(recipe, request.engines)?;
        let opened = Opened::of(recipe)?;
        let measuring =
            Measuring { recipe, engines: request.engines, opened: &opened, observer: request.observer, session: None };
        let subject = [Subject::opened(&opened)];
        let mut evals = measuring.measure(&subject, &mut BTreeSet::new())?;
        evals.extend(measuring.time(&subject)?);
        inputs.check().map(|()| evals)
    })
}

/// What cannot end well is known before hours of work, not after.
fn plan_within(recipe: &Recipe, request: &Request<'_>) -> Result<Plan> {
    let planned = plan(recipe, request.engines)?;
    planned.check_memory(request.max_memory)?;
    check_needs(recipe, request.engines)?;
    planned.notes.iter().for_each(|note| request.observer.note(&format!("note: {note}")));
    Ok(planned)
}

/// Digests every file that the run reads, and does with the lock file what is asked for.
fn lock_inputs(recipe: &Recipe, found: &Inputs, request: &Request<'_>) -> Result<Lock> {
    request.observer.stage("digest inputs", found.files().map(|(_, bytes)| bytes).sum());
    let (mut inputs, mut done) = (Vec::new(), 0);
    for (file, bytes) in found.files() {
        inputs.push(lock::Input { path: file.display().to_string(), bytes, digest: Digest::of_file(file)? });
        done += bytes;
        request.observer.advance(done, &file.display().to_string());
        if request.observer.interrupted() {
            return Err(Error::interrupted());
        }
    }
    found.check()?;
    let settings = recipe.settings().to_string();
    let lock = Lock { lock: 1, tool: TOOL.into(), recipe: Digest::of(settings.as_bytes()), inputs };
    lock.apply(request.lock, &Lock::path(&recipe.document.path))?;
    Ok(lock)
}

fn claim_output(recipe: &Recipe) -> Result<Output> {
    let output = Output::claim(recipe.output(), &recipe.owner())?;
    output.withdraw_promises()?;
    Ok(output)
}

/// Every variant, made and written, and the extra folders of their steps.
fn make_variants(
    recipe: &Recipe,
    planned: &Plan,
    output: &Output,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<(Vec<Made>, Vec<WrittenFolder>)> {
    let (mut made, mut folders) = (Vec::new(), Vec::new());
    for (variant, planned) in recipe.variants.iter().zip(&planned.variants) {
        let working = run_steps(recipe, variant, planned, session, used)?;
        folders.extend(publish::extras(recipe, variant, &working, output, session)?);
        let artifacts = publish::artifacts(recipe, variant, &working, output, session)?;
        let model = session.base().with(working.graph.clone(), working.source.clone());
        made.push(Made { name: variant.name.clone(), model, working, artifacts });
    }
    Ok((made, folders))
}

/// The model after all steps of a variant.
fn run_steps(
    recipe: &Recipe,
    variant: &Variant,
    planned: &PlannedVariant,
    session: &Session<'_>,
    used: &mut BTreeSet<Digest>,
) -> Result<Working> {
    let mut working = Working::new(variant.title(), session.base(), recipe.data())?;
    working.kept = planned.kept.clone();
    working.recipe = recipe.name();
    for (at, (key, step)) in variant.steps.iter().enumerate() {
        working.kept.at(at);
        used.extend(step.run(&mut working, session).map_err(|e| recipe.failed_step(key, step.kind(), e))?);
    }
    working.findings.extend(coded(&working)?);
    Ok(working)
}

/// What runners measure and compilers predict; then what differs in each run.
fn measure_variants(
    measuring: &Measuring<'_>,
    made: &[Made],
    output: &Output,
    used: &mut BTreeSet<Digest>,
) -> Result<(Vec<Evaluation>, Vec<Evaluation>)> {
    let subjects: Vec<Subject<'_>> = match measuring.recipe.variants.is_empty() {
        true => vec![Subject::opened(measuring.opened)],
        false => made.iter().map(|made| Subject::made(made, output)).collect(),
    };
    let mut evals = measuring.measure(&subjects, used)?;
    evals.extend(made.iter().filter_map(Made::prediction));
    evals.extend(measuring.predict(&subjects)?);
    Ok((evals, measuring.time(&subjects)?))
}

/// Verdicts on times, and all others.
fn judge(recipe: &Recipe, evals: &[Evaluation]) -> (Vec<Verdict>, Vec<Verdict>) {
    let timed = |verdict: &Verdict| recipe.evals.iter().any(|eval| eval.name == verdict.gate.eval && eval.task.task().timed);
    recipe.gates.iter().flat_map(|gate| gate.judge(evals)).partition(timed)
}

fn describe_model(planned: Plan) -> ModelReport {
    let (path, architecture, parameters) = (planned.model, planned.architecture, planned.parameters);
    let (ignored, no_tokenizer) = planned.read.map_or_else(Default::default, |read| (read.ignored, read.no_tokenizer));
    let tensors = ignored.iter().map(|tensor| format!("`{tensor}`, by `ignore`"));
    let tokenizer = no_tokenizer.map(|reason| format!("a tokenizer: {reason}"));
    let left_out = tensors.chain(tokenizer).collect();
    ModelReport { path, architecture, parameters, left_out }
}

fn keep_promises(report: &Report, manifest: &Manifest<'_>, output: &Output) -> Result<()> {
    output.write("report.json", &json(report))?;
    output.write("report.md", report.markdown().as_bytes())?;
    if let Some(timed) = &report.timed {
        output.write("measured.json", &json(timed))?;
    }
    output.write("report.html", page::of_run(report, manifest.inputs()).as_bytes())?;
    // Last: a folder with a manifest is a finished one.
    output.write("manifest.json", &json(manifest))
}

/// A store that only this run knows keeps what was used, or nothing.
fn clean_up(recipe: &Recipe, workspace: Workspace, used: &BTreeSet<Digest>, output: &Output) -> Result<()> {
    if recipe.head.store.is_some() {
        return Ok(());
    }
    workspace.store.collect_garbage(Keep::Only(used), false)?;
    // Another recipe may have named this store as its own.
    if recipe.head.keep_store || !workspace.store.leases()?.is_empty() {
        return Ok(());
    }
    drop(workspace);
    output.forget_state()
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Mutex};

    use super::*;
    use crate::{extras::Content, kept::Kept};

    /// Notes what is searched for schedules.
    #[derive(Default)]
    struct Searches {
        chunks: Mutex<bool>,
        found: Mutex<Vec<String>>,
    }

    impl Observer for Searches {
        fn stage(&self, name: &str, _: u64) {
            *self.chunks.lock().unwrap() = name.ends_with("trying chunk sizes");
        }

        fn advance(&self, _: u64, what: &str) {
            if *self.chunks.lock().unwrap() || what.starts_with("schedule of ") {
                self.found.lock().unwrap().push(what.into());
            }
        }

        fn note(&self, _: &str) {}
    }

    fn compiling() -> Recipe {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        let text = format!(
            "recipe = 1\nmodel = {:?}\noutput = \"/nonexistent/out\"\n\
             [data.calibration]\npath = {:?}\nsamples = 2\nlength = 64\n\
             [[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 32\nscale_dtype = \"int6\"\n\
             [[step]]\nkind = \"activations\"\nmode = \"static\"\n\
             [[step]]\nkind = \"compile\"\nset = [\"sram=48KiB\"]\nseq = 24\nchunk = 16\n",
            data.join("models/shakespeare-1m"),
            data.join("evals/shakespeare-train.txt"),
        );
        Recipe::parse(Path::new("r.toml"), &text).unwrap()
    }

    /// The files of the steps of the only variant, by their digests, and the searches for schedules.
    fn made(recipe: &Recipe, planned: &PlannedVariant) -> (Vec<(String, Digest)>, Vec<String>) {
        let (opened, folder, observer) = (Opened::of(recipe).unwrap(), tempfile::tempdir().unwrap(), Searches::default());
        let workspace = Workspace::open(folder.path().into(), WALKERS, Inputs::default()).unwrap();
        let texts = opened.windows(recipe, &workspace.session(opened.model(), &observer)).unwrap();
        let workspace = workspace.reading(texts);
        let session = workspace.session(opened.model(), &observer);
        let made = run_steps(recipe, &recipe.variants[0], planned, &session, &mut BTreeSet::new()).unwrap();
        let files = made.folders.iter().flat_map(|folder| &folder.files).map(|(name, content)| match content {
            Content::Bytes(bytes) => (name.clone(), Digest::of(bytes)),
            Content::Blob { digest, .. } => (name.clone(), *digest),
        });
        (files.collect(), observer.found.into_inner().unwrap())
    }

    #[test]
    fn a_run_searches_no_schedule_that_its_plan_found() {
        let recipe = compiling();
        let mut planned = plan(&recipe, &Engines::default()).unwrap();
        let (files, searched) = made(&recipe, &planned.variants[0]);
        assert_eq!(searched, Vec::<String>::new());
        planned.variants[0].kept = Kept::default();
        let (unplanned, searched) = made(&recipe, &planned.variants[0]);
        let schedules = ["schedule of prefill-1", "schedule of prefill-2", "schedule of decode"];
        assert!(schedules.iter().all(|what| searched.iter().any(|searched| searched == what)), "{searched:?}");
        assert!(searched.len() > schedules.len(), "chunk sizes are tried, too: {searched:?}");
        assert_eq!(files, unplanned, "the same plans, proofs and reports to the byte");
        assert!(files.iter().any(|(name, _)| name == "prefill-2.plan") && files.iter().any(|(name, _)| name == "dram.bin"));
    }
}
