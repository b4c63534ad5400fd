//! The suite of TASKS: for every task, perfect answers score perfectly, random ones as theory says, and a real model what
//! somebody else computed for it. A task brings `testdata/tasks/NAME.toml`: settings, a model, and golden scores.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use attar_eval::{
    Against, Asked, Better, Error, Language, Measurements, Metric, Prepared, Reference, Result, Rows, Runner, Settings, Sides,
    TASKS, Task,
};
use attar_model::{ChatTemplate, Model};

/// `testdata/tasks/NAME.toml`.
struct Case {
    settings: Box<dyn Settings>,
    model: Model,
    /// By metrics, the value and its relative tolerance.
    golden: toml::Table,
    tolerance: f64,
}

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

impl Case {
    fn of(task: &Task) -> Case {
        let file = testdata(&format!("tasks/{}.toml", task.name));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|_| panic!("{} should give a case of the task", file.display()));
        let mut table: toml::Table = text.parse().unwrap();
        let mut settings = table.remove("settings").unwrap();
        let here = |path: &mut toml::Value| *path = testdata(path.as_str().unwrap()).to_str().unwrap().into();
        settings.get_mut("data").into_iter().for_each(here);
        let texts = settings.get_mut("texts").and_then(toml::Value::as_array_mut).into_iter().flatten();
        texts.filter_map(|text| text.get_mut("path")).for_each(here);
        Case {
            settings: (task.parse)(serde_json::to_value(settings).unwrap()).unwrap(),
            model: Model::open(&testdata(table["model"].as_str().unwrap())).unwrap(),
            tolerance: table["tolerance"].as_float().unwrap(),
            golden: table.remove("golden").unwrap().as_table().unwrap().clone(),
        }
    }

    fn prepare(&self) -> Box<dyn Prepared> {
        self.settings.check(&self.model.config).unwrap();
        let (tokenizer, chat) = (self.model.tokenizer().unwrap(), ChatTemplate::of(&self.model).unwrap());
        self.settings.prepare(&Language { tokenizer: &tokenizer, config: &self.model.config, chat: chat.as_ref() }).unwrap()
    }
}

/// Answers of a given kind, as if by a model.
struct Answers<'p> {
    prepared: &'p dyn Prepared,
    width: usize,
    /// The state of xorshift64, for random answers.
    random: Option<u64>,
}

impl Rows for Answers<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        out.clear();
        for position in positions {
            match &mut self.random {
                None => out.extend(self.prepared.perfect(window, position, self.width)),
                Some(state) => out.extend((0..self.width).map(|_| small(state))),
            }
        }
        Ok(self.width)
    }

    fn answer(&mut self, window: usize) -> Result<Vec<u32>> {
        Ok(match &mut self.random {
            None => self.prepared.perfect_answer(window),
            Some(state) => (0..8).map(|_| (f64::from(small(state) + 0.01) * 50.0 * self.width as f64) as u32).collect(),
        })
    }
}

/// Tasks that ask for windows.
fn windowed() -> impl Iterator<Item = &'static &'static Task> {
    TASKS.iter().filter(|task| !task.timed)
}

/// What a task asks of a model.
fn asked(task: &Task, prepared: &dyn Prepared) -> Asked {
    prepared.generation().map_or(Asked::Output(task.output), |how| Asked::Answers(how.clone()))
}

/// Between -0.01 and 0.01.
fn small(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    ((*state >> 40) as f32 / (1u32 << 24) as f32 - 0.5) * 0.02
}

const PERFECT: Option<u64> = None;
const RANDOM: Option<u64> = Some(0x61_74_74_61_72);

/// Any width that holds every token of the test data.
fn width(case: &Case) -> usize {
    case.model.tokenizer().unwrap().vocabulary()
}

fn scored(prepared: &dyn Prepared, width: usize, model: Option<u64>) -> Measurements {
    let answers = |random| Answers { prepared, width, random };
    let (mut model, mut base, mut sibling) = (answers(model), answers(PERFECT), answers(PERFECT));
    let mut sides = Sides { model: &mut model, base: Some(&mut base), sibling: Some(&mut sibling) };
    prepared.score(&mut sides, &|_, _| {}).unwrap()
}

/// f32 answers cannot be more perfect.
const PERFECTLY: f64 = 1e-6;

#[test]
fn perfect_answers_score_perfectly() {
    for task in windowed() {
        let case = Case::of(task);
        let measured = scored(&*case.prepare(), width(&case), PERFECT);
        for metric in task.metrics {
            let value = metric.value(&measured).unwrap_or_else(|| panic!("{} measured no {}", task.name, metric.name));
            assert!((value - metric.perfect).abs() < PERFECTLY, "{}/{} is {value}", task.name, metric.name);
            if let Some(loss) = metric.loss {
                assert!(loss(&measured).unwrap().value.abs() < PERFECTLY, "{}/{}", task.name, metric.name);
            }
        }
    }
}

#[test]
fn a_metric_is_measured_exactly_where_what_it_is_held_against_is_there() {
    for task in windowed() {
        let case = Case::of(task);
        let (prepared, width) = (case.prepare(), width(&case));
        let answers = || Answers { prepared: &*prepared, width, random: PERFECT };
        for (base, sibling) in [(false, false), (true, false), (false, true), (true, true)] {
            let (mut model, mut one, mut other) = (answers(), answers(), answers());
            let mut sides = Sides { model: &mut model, base: None, sibling: None };
            if base {
                sides.base = Some(&mut one);
            }
            if sibling {
                sides.sibling = Some(&mut other);
            }
            let measured = prepared.score(&mut sides, &|_, _| {}).unwrap();
            for metric in task.metrics {
                let there = match metric.against {
                    Against::Nothing => true,
                    Against::Base => base,
                    Against::Sibling => sibling,
                };
                let name = format!("{}/{}, base {base}, sibling {sibling}", task.name, metric.name);
                assert_eq!(metric.value(&measured).is_some(), there, "{name}");
                assert_eq!(metric.loss.and_then(|loss| loss(&measured)).is_some(), metric.loss.is_some() && base, "{name}");
            }
        }
    }
}

/// Random answers to a few dozen questions differ so much from what is expected of them.
const CHANCE: f64 = 0.3;

#[test]
fn random_answers_score_as_they_must() {
    for task in windowed() {
        let case = Case::of(task);
        let measured = scored(&*case.prepare(), width(&case), RANDOM);
        for metric in task.metrics {
            let value = metric.value(&measured).unwrap();
            assert!(is_worse(metric, value), "{}/{} is {value} for random answers", task.name, metric.name);
            if let Some(expected) = metric.random.map(|random| random(width(&case))) {
                let off = (value - expected).abs() / expected.abs().max(1.0);
                assert!(off < CHANCE, "{}/{} is {value}, expected {expected}", task.name, metric.name);
            }
        }
    }
}

fn is_worse(metric: &Metric, value: f64) -> bool {
    match metric.better {
        Better::Lower => value > metric.perfect,
        Better::Higher => value < metric.perfect,
    }
}

#[test]
fn real_models_have_the_golden_scores() {
    for task in windowed() {
        let case = Case::of(task);
        let prepared = case.prepare();
        let reference = Reference::new(&case.model);
        if let Err(error) = task.output.of(&attar_eval::outputs(&case.model.graph)) {
            let refused =
                reference.start(asked(task, &*prepared), prepared.windows(), &|_, _| {}).err().map(|error| error.to_string());
            assert_eq!(refused, Some(error.to_string()), "{}", task.name);
            assert!(matches!(error, Error::NoOutput { .. }) && case.golden.is_empty());
            continue;
        }
        let [mut model, mut base] =
            [(); 2].map(|()| reference.start(asked(task, &*prepared), prepared.windows(), &|_, _| {}).unwrap());
        let mut sides = Sides { model: &mut *model, base: Some(&mut *base), sibling: None };
        let measured = prepared.score(&mut sides, &|_, _| {}).unwrap();
        assert!(!case.golden.is_empty(), "{} has no golden score", task.name);
        for (name, golden) in &case.golden {
            let (value, golden) = (task.metric(name).unwrap().value(&measured).unwrap(), golden.as_float().unwrap());
            assert!(
                (value - golden).abs() <= case.tolerance * golden.abs().max(1.0),
                "{}/{name} is {value}, expected {golden}",
                task.name
            );
        }
        assert!(measured.number(task.count).unwrap() > 0.0);
    }
}

#[test]
fn settings_are_checked_where_they_stand() {
    for task in windowed() {
        let schema = (task.schema)();
        // A task reads a file, or several texts.
        let (key, value) = match schema["properties"]["data"].is_object() {
            true => ("data", serde_json::json!("x")),
            false => ("texts", serde_json::json!([{ "name": "a", "path": "x" }])),
        };
        assert!(
            schema["properties"].as_object().unwrap().values().all(|setting| setting["description"].is_string()),
            "{}",
            task.name
        );
        let invalid = (task.parse)(serde_json::json!({ key: 3 })).unwrap_err();
        assert_eq!(invalid.key, key, "{}: {invalid}", task.name);
        assert!((task.parse)(serde_json::json!({ key: value, "dtaa": 1 })).is_err(), "{} takes unknown keys", task.name);
        let settings = (task.parse)(serde_json::json!({ key: value })).unwrap();
        assert_eq!(settings.files(), [PathBuf::from("x")]);
        assert!(std::ptr::eq(settings.task(), *task));
    }
}
