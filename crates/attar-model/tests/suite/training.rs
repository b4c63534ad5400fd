//! The graph is differentiable: every weight gets the gradient that finite differences say, and steps against it lower
//! the loss.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use attar_graph::{Inputs, Mode, Run, SourceWeights, TensorWeights, Weights};
use attar_model::Model;
use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy};

/// Largest difference between a gradient along a direction and the finite difference along it, as a share of the
/// gradient's norm: an f32 loss has some 1e-7 of noise, and steps are short enough that third derivatives do not show.
const DIFFERENCE: f64 = 0.005;

/// A step of finite differences, as a share of a weight's root mean square.
const STEP: f64 = 0.01;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// A model whose stored tensors are variables; a tied one is one variable under two names.
struct Trainee {
    model: Model,
    variables: BTreeMap<String, Var>,
}

impl Trainee {
    fn open(name: &str) -> Trainee {
        let model = Model::open(&testdata().join("models").join(name)).unwrap();
        let source = SourceWeights(model.source.clone());
        let mut variables = BTreeMap::new();
        for (_, value, expr) in model.graph.weights() {
            let read = || Var::from_tensor(&source.whole(&value.name, expr).unwrap()).unwrap();
            variables.entry(expr.to_string()).or_insert_with(read);
        }
        Trainee { model, variables }
    }

    /// Mean cross-entropy of every next token.
    fn loss(&self, batch: &[Vec<u32>]) -> Tensor {
        let named = self
            .model
            .graph
            .weights()
            .map(|(_, value, expr)| (value.name.clone(), self.variables[&expr.to_string()].as_tensor().clone()));
        let source = SourceWeights(self.model.source.clone());
        let weights = TensorWeights { tensors: named.collect::<HashMap<_, _>>(), below: &source };
        let length = batch[0].len() - 1;
        let windows: Vec<&[u32]> = batch.iter().map(|window| &window[..length]).collect();
        let next: Vec<u32> = batch.iter().flat_map(|window| window[1..].iter().copied()).collect();
        let lane = Inputs::tokens(&windows, 0).unwrap();
        let logits = Run::new(&self.model.graph, &weights, Mode::Training, vec![lane]).finish(0).unwrap().0.remove(0);
        if logits.dims().len() == 2 {
            return spread(&logits);
        }
        let rows = (batch.len() * length, logits.dim(2).unwrap());
        cross_entropy(&logits.reshape(rows).unwrap(), &Tensor::new(next, &Device::Cpu).unwrap()).unwrap()
    }

    /// Adds seeded noise of a tenth of each weight's root mean square.
    fn perturb(&self) {
        for (seed, variable) in self.variables.values().enumerate() {
            let noise = signs(variable, seed as u64).affine(0.1 * root_mean_square(variable), 0.0).unwrap();
            variable.set(&(variable.as_tensor() + noise).unwrap()).unwrap();
        }
    }
}

/// For embeddings `[batch, width]`, some function of all their numbers.
fn spread(embeddings: &Tensor) -> Tensor {
    let weights = signs(embeddings, 7);
    (embeddings * weights).unwrap().sum_all().unwrap()
}

/// Windows of real text, far apart.
fn text(model: &Model, windows: usize, length: usize) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(testdata().join("evals/shakespeare-valid.txt")).unwrap();
    let tokens = model.tokenizer().unwrap().encode(&text).unwrap();
    tokens.chunks(tokens.len() / windows).take(windows).map(|part| part[..length].to_vec()).collect()
}

/// Windows of seeded tokens.
fn noise(vocabulary: usize, windows: usize, length: usize) -> Vec<Vec<u32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary as u32
    };
    (0..windows).map(|_| (0..length).map(|_| next()).collect()).collect()
}

/// As many seeded signs as `like` has elements.
fn signs(like: &Tensor, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 0 { 1.0f32 } else { -1.0 }
    };
    let signs: Vec<f32> = (0..like.elem_count()).map(|_| next()).collect();
    Tensor::from_vec(signs, like.dims(), &Device::Cpu).unwrap()
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let double = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    scalar(&(double(a) * double(b)).unwrap().sum_all().unwrap())
}

fn root_mean_square(x: &Tensor) -> f64 {
    (dot(x, x) / x.elem_count() as f64).sqrt()
}

fn assert_every_weight_learns(name: &str, trainee: &Trainee, gradients: &GradStore) {
    for (weight, variable) in &trainee.variables {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name}: {weight} has no gradient"));
        assert_eq!(gradient.dims(), variable.dims(), "{name}: {weight}");
        let norm = dot(gradient, gradient).sqrt();
        assert!(norm.is_finite() && norm > 0.0, "{name}: the gradient of {weight} has the norm {norm}");
    }
}

#[test]
fn every_weight_gets_a_gradient_from_real_text() {
    let trainee = Trainee::open("shakespeare-1m");
    let loss = trainee.loss(&text(&trainee.model, 4, 48));
    assert!((2.0..6.0).contains(&scalar(&loss)), "{loss}");
    assert_every_weight_learns("shakespeare-1m", &trainee, &loss.backward().unwrap());
}

#[test]
fn every_weight_of_every_architecture_gets_a_gradient() {
    for entry in std::fs::read_dir(testdata().join("models")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let trainee = Trainee::open(&name);
        let vocabulary = trainee.model.graph.weights().find(|(_, value, _)| value.name == "embedding").unwrap();
        let vocabulary = vocabulary.1.fact.constant_dims().unwrap()[0];
        let loss = trainee.loss(&noise(vocabulary, 2, 24));
        assert_every_weight_learns(&name, &trainee, &loss.backward().unwrap());
    }
}

/// Along directions of random signs: a gradient that misses a path is off there by its share.
#[test]
fn gradients_are_those_of_finite_differences() {
    let trainee = Trainee::open("shakespeare-1m");
    trainee.perturb();
    let batch = text(&trainee.model, 2, 32);
    let gradients = trainee.loss(&batch).backward().unwrap();
    for (seed, (weight, variable)) in trainee.variables.iter().enumerate() {
        let (gradient, direction) = (gradients.get(variable).unwrap(), signs(variable, 1000 + seed as u64));
        let (here, step) = (variable.as_tensor().copy().unwrap(), STEP * root_mean_square(variable));
        let at = |factor: f64| {
            variable.set(&(&here + direction.affine(factor, 0.0).unwrap()).unwrap()).unwrap();
            scalar(&trainee.loss(&batch))
        };
        let (found, wanted) = ((at(step) - at(-step)) / (2.0 * step), dot(gradient, &direction));
        variable.set(&here).unwrap();
        let norm = dot(gradient, gradient).sqrt();
        assert!(
            (found - wanted).abs() <= DIFFERENCE * norm,
            "{weight}: {found} by differences, {wanted} by gradient, norm {norm}"
        );
    }
}

#[test]
fn thirty_steps_lower_the_loss() {
    let trainee = Trainee::open("shakespeare-1m");
    trainee.perturb();
    let batch = text(&trainee.model, 4, 48);
    let variables = trainee.variables.values().cloned().collect();
    let mut optimizer = AdamW::new(variables, ParamsAdamW { lr: 1e-3, ..Default::default() }).unwrap();
    let losses: Vec<f64> = (0..30)
        .map(|_| {
            let loss = trainee.loss(&batch);
            optimizer.backward_step(&loss).unwrap();
            scalar(&loss)
        })
        .collect();
    let after = scalar(&trainee.loss(&batch));
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(after < 0.8 * losses[0], "{losses:?}");
}
