//! The trainer against torch (`testdata/oracle/distill.py`) and against finite differences, on a real model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use attar_compress::learn::{Batch, Distill, Pace, Plain, Student, Teacher, Tied};
use attar_compress::prune::Sublayer;
use attar_graph::{BlockId, Cached, Inputs, Mode, Origin, SourceWeights, ValueId, Values};
use attar_model::Model;
use attar_tensor::Dtype;
use candle_core::Tensor;
use serde_json::Value;

/// Sums of f32 in another order, carried through three steps.
const LOSS: f64 = 2e-5;

/// Share of the distance that a weight moved: where a gradient is small, Adam divides noise by noise.
const MOVED: f64 = 0.02;

/// A central difference of f32 losses against a derivative.
const DIFFERENCE: f64 = 0.02;

fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

fn model() -> Model {
    Model::open(&testdata("models/shakespeare-1m")).unwrap()
}

/// The table of embeddings, which the head is tied to.
const TABLE: &str = "embedding";

/// All weights of the blocks and the norms, and with `table` that of the embeddings, in f32; `mlp.down` at nine tenths.
fn trained(model: &Model, table: bool) -> BTreeMap<BlockId, BTreeMap<String, Plain>> {
    let mut plain: BTreeMap<BlockId, BTreeMap<String, Plain>> = BTreeMap::new();
    for node in model.graph.nodes() {
        for id in &node.inputs {
            let value = model.graph.get(*id);
            let Origin::Weight(expr) = &value.origin else { continue };
            if !(value.name.starts_with("blocks.") || value.name == "final_norm" || table && value.name == TABLE) {
                continue;
            }
            let dims = value.fact.constant_dims().unwrap();
            let mut values = vec![0.0; dims.iter().product()];
            expr.read(&*model.source, 0..if dims.len() > 1 { dims[0] } else { 1 }, &mut values).unwrap();
            if value.name.ends_with("mlp.down") {
                values.iter_mut().for_each(|x| *x *= 0.9);
            }
            let one = Plain::new(dims, values, Dtype::F32, Pace::Weight, 1.0);
            plain.entry(node.block).or_default().insert(value.name.clone(), one);
        }
    }
    plain
}

fn settings(json: Value) -> Distill {
    serde_json::from_value(json).unwrap()
}

/// A student and what it is held against.
struct Lesson {
    model: Model,
    below: SourceWeights,
    windows: Vec<Vec<u32>>,
    inputs: Values,
    /// What enters the teacher's last block.
    entering: Values,
}

impl Lesson {
    fn new(windows: Vec<Vec<u32>>) -> Lesson {
        let model = model();
        let below = SourceWeights(model.source.clone());
        let lanes: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let inputs: Values = Inputs::tokens(&lanes, 0).unwrap().of(&model.graph);
        let (mut entering, last) = (inputs.clone(), model.graph.blocks().last().unwrap());
        for block in model.graph.blocks().take_while(|block| *block != last) {
            let left = model.graph.evaluate_block(block, &below, Mode::Inference, &entering).unwrap();
            entering.extend(left);
        }
        let read = model.graph.live_into(last);
        entering.retain(|id, _| read.contains(id));
        Lesson { model, below, windows, inputs, entering }
    }

    fn student(&self) -> Student<'_> {
        self.training(false)
    }

    /// With the table of embeddings in training, too.
    fn training(&self, table: bool) -> Student<'_> {
        let blocks: Vec<BlockId> = self.model.graph.blocks().collect();
        let (first, last) = (blocks[0], blocks[blocks.len() - 1]);
        let tied = Tied { weight: (last, "lm_head".into()), to: (first, TABLE.into()) };
        Student {
            graph: &self.model.graph,
            below: &self.below,
            learned: BTreeMap::new(),
            plain: trained(&self.model, table),
            tied: table.then_some(tied).into_iter().collect(),
            maps: BTreeMap::new(),
            keeps: false,
        }
    }

    /// The teacher's residual stream behind every block, where a student is held against it.
    fn states(&self) -> BTreeMap<BlockId, (ValueId, Tensor)> {
        let (graph, mut values) = (&self.model.graph, self.inputs.clone());
        let mut behind: BTreeMap<BlockId, ValueId> = BTreeMap::new();
        behind.extend(Sublayer::of(graph).unwrap().iter().map(|sublayer| (sublayer.block, sublayer.stream.after)));
        let mut found = BTreeMap::new();
        for (block, value) in behind {
            for block in graph.blocks().filter(|other| *other <= block) {
                if !values.contains_key(&value) {
                    values.extend(graph.evaluate_block(block, &self.below, Mode::Inference, &values).unwrap());
                }
            }
            found.insert(block, (value, values[&value].clone()));
        }
        found
    }

    fn batch<'b>(&'b self, head: &'b Cached<'_>) -> Batch<'b> {
        let teacher = Teacher { graph: &self.model.graph, entering: &self.entering, head };
        Batch { inputs: &self.inputs, tokens: &self.windows, teacher: Some(teacher), top: None, states: self.states() }
    }
}

#[test]
fn three_steps_are_those_of_torch() {
    let oracle: Value = serde_json::from_str(&std::fs::read_to_string(testdata("oracle/distill.json")).unwrap()).unwrap();
    let lesson = Lesson::new(serde_json::from_value(oracle["windows"].clone()).unwrap());
    let settings = settings(serde_json::json!({
        "kl": 0.7, "labels": 0.3, "hidden": 0.5, "learning_rate": 1e-3, "warmup": 2, "final": 0.1, "decay": 0.1, "steps": 3
    }));
    settings.check().unwrap();
    let (mut student, head) = (lesson.student(), Cached::new(&lesson.below));
    for (step, wanted) in oracle["losses"].as_array().unwrap().iter().enumerate() {
        let loss = settings.step(&mut student, &[lesson.batch(&head)], &head, [step, 3]).unwrap();
        let wanted = wanted.as_f64().unwrap();
        assert!((loss - wanted).abs() < LOSS * wanted, "step {step}: {loss}, {wanted}");
    }
    let before = trained(&lesson.model, false);
    for (name, wanted) in oracle["weights"].as_object().unwrap() {
        let values = |of: &BTreeMap<BlockId, BTreeMap<String, Plain>>| {
            of.values().find_map(|block| Some(block.get(name)?.values())).unwrap()
        };
        let (found, before) = (values(&student.plain), values(&before));
        for (at, wanted) in wanted.as_array().unwrap().iter().enumerate() {
            let (wanted, moved) = (wanted.as_f64().unwrap(), wanted.as_f64().unwrap() - f64::from(before[at]));
            let off = f64::from(found[at]) - wanted;
            assert!(off.abs() <= MOVED * moved.abs().max(1e-4), "`{name}` {at}: {off} of {moved}");
        }
    }
}

#[test]
fn batches_of_one_step_are_a_larger_batch() {
    let windows: Vec<Vec<u32>> = (0..2u32).map(|w| (0..32).map(|at| (w * 131 + at * 17) % 1000).collect()).collect();
    let settings = settings(serde_json::json!({ "labels": 1.0, "learning_rate": 1e-3, "steps": 1, "warmup": 1 }));
    let step = |parts: Vec<Vec<Vec<u32>>>| {
        let lessons: Vec<Lesson> = parts.into_iter().map(Lesson::new).collect();
        let (mut student, head) = (lessons[0].student(), Cached::new(&lessons[0].below));
        let batches: Vec<Batch<'_>> = lessons.iter().map(|lesson| lesson.batch(&head)).collect();
        settings.step(&mut student, &batches, &head, [0, 1]).unwrap()
    };
    let (together, apart) = (step(vec![windows.clone()]), step(windows.iter().map(|w| vec![w.clone()]).collect()));
    assert!((together - apart).abs() < LOSS * together, "{together}, {apart}");
}

/// Activations that are kept give the gradients of activations that are computed twice.
#[test]
fn what_is_kept_is_what_would_be_computed_again() {
    let lesson = Lesson::new(vec![(0..40u32).map(|at| (at * at * 17 + at) % 1000).collect()]);
    let (settings, head) = (settings(serde_json::json!({ "labels": 0.4 })), Cached::new(&lesson.below));
    let gradients = |keeps: bool| {
        let mut student = Student { keeps, ..lesson.student() };
        settings.gradients(&mut student, &lesson.batch(&head), &head).unwrap()
    };
    assert!(gradients(true) == gradients(false));
}

/// One step without moments and bounds moves every weight by its gradient: the loss falls as the squares of the gradients say.
#[test]
fn gradients_are_those_of_differences() {
    let windows = vec![(0..40u32).map(|at| (at * at * 17 + at) % 1000).collect()];
    let lesson = Lesson::new(windows);
    let head = Cached::new(&lesson.below);
    let batch = lesson.batch(&head);
    let settings = settings(serde_json::json!({ "kl": 0.6, "labels": 0.4 }));
    let mut student = lesson.training(true);
    let gradients = settings.gradients(&mut student, &batch, &head).unwrap();
    let loss = |student: &Student<'_>| settings.loss(batch.measure(student, &head).unwrap());
    let mut kinds = 0;
    for (block, names) in trained(&lesson.model, true) {
        for name in names.keys().filter(|name| !name.starts_with("blocks.1") && !name.starts_with("blocks.2")) {
            let gradient = &gradients[name];
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let moved = |by: f64| {
                let mut student = lesson.training(true);
                let one = student.plain.get_mut(&block).unwrap().get_mut(name).unwrap();
                let along: Vec<f32> = one.values().iter().zip(gradient).map(|(x, g)| x + (by / norm) as f32 * g).collect();
                *one = Plain::new(model_dims(&lesson.model, name), along, Dtype::F32, Pace::Weight, 1.0);
                loss(&student)
            };
            let by = 0.02 / norm.max(0.1);
            let slope = (moved(by) - moved(-by)) / (2.0 * by);
            assert!((slope - norm).abs() < DIFFERENCE * norm, "`{name}`: {slope}, {norm}");
            kinds += 1;
        }
    }
    assert_eq!(kinds, 2 * 9 + 2, "nine weights in each of two blocks, the last norm, and a table that is read in two places");
}

fn model_dims(model: &Model, name: &str) -> Vec<usize> {
    model.graph.fact(model.graph.find(name).unwrap()).constant_dims().unwrap()
}
