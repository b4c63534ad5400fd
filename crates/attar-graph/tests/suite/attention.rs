//! The attention kernel against a brute-force form in f64, and against the form that has gradients.

use attar_graph::{
    Graph, Inputs, Mode, Run,
    kernel::{self, Scores},
};
use candle_core::Tensor;

use crate::random::Random;

/// Largest difference over the largest value: a softmax over some hundred f32 scores.
const RELATIVE: f64 = 2e-6;

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    heads: usize,
    key_heads: usize,
    seq: usize,
    past: usize,
    head: usize,
    window: Option<usize>,
    causal: bool,
    softcap: Option<f32>,
}

/// Around the 64 query rows of a product, with and without a past, windows from one position to more than all.
fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for (seq, past) in [(1, 0), (1, 130), (7, 3), (63, 0), (64, 1), (65, 64), (130, 0), (200, 77)] {
        for (heads, key_heads, head) in [(1, 1, 4), (6, 2, 16), (9, 3, 20)] {
            for window in [None, Some(1), Some(5), Some(64), Some(100), Some(1000)] {
                let shape = Shape { batch: 1 + seq % 2, heads, key_heads, seq, past, head, window, causal: true, softcap: None };
                all.push(shape);
                all.push(Shape { causal: false, ..shape });
                all.push(Shape { causal: window.is_some(), softcap: Some(1.5), ..shape });
            }
        }
    }
    all
}

impl Shape {
    fn operands(&self) -> [Tensor; 3] {
        let mut random = Random::new((self.seq * 1000 + self.past) as u64);
        let keys = [self.batch, self.key_heads, self.past + self.seq, self.head];
        let query = random.tensor(&[self.batch, self.heads, self.seq, self.head]).affine(4.0, 0.0).unwrap();
        [query, random.tensor(&keys).affine(2.0, 0.0).unwrap(), random.tensor(&keys)]
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head as f64).sqrt()
    }

    fn kernel(&self) -> Vec<f32> {
        let [q, k, v] = self.operands();
        let scores = Scores { scale: self.scale() as f32, softcap: self.softcap, causal: self.causal, window: self.window };
        values(&kernel::attention(&q, &k, &v, &scores).unwrap())
    }

    /// One output after the other, as the definition says.
    fn brute_force(&self) -> Vec<f64> {
        let [q, k, v] = self.operands().map(|tensor| values(&tensor));
        let (all, d) = (self.past + self.seq, self.head);
        let mut out = Vec::new();
        for row in 0..self.batch * self.heads * self.seq {
            let (batch, head, i) = (row / self.seq / self.heads, row / self.seq % self.heads, row % self.seq);
            let key_head = head / (self.heads / self.key_heads);
            let last = self.past + i;
            let window = self.window.unwrap_or(all);
            let seen = (last + 1).saturating_sub(window)..if self.causal { last + 1 } else { all.min(last + window) };
            let at = |j: usize| ((batch * self.key_heads + key_head) * all + j) * d;
            let dot = |j: usize| (0..d).map(|c| f64::from(q[row * d + c]) * f64::from(k[at(j) + c])).sum::<f64>();
            let score = |j: usize| match self.softcap.map(f64::from) {
                Some(cap) => cap * (dot(j) * self.scale() / cap).tanh(),
                None => dot(j) * self.scale(),
            };
            let weights: Vec<f64> = seen.clone().map(|j| score(j).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..d).map(|c| seen.clone().zip(&weights).map(|(j, w)| w * f64::from(v[at(j) + c])).sum::<f64>() / sum));
        }
        out
    }

    /// Through the ops that have gradients.
    fn differentiable(&self) -> Vec<f32> {
        let Shape { heads, key_heads, head, .. } = self;
        let window = self.window.map(|n| format!(", window = {n}")).unwrap_or_default();
        let causal = if self.causal { "" } else { ", causal = false" };
        let softcap = self.softcap.map(|cap| format!(", softcap = {cap}")).unwrap_or_default();
        let keys = format!("[batch, {key_heads}, past+seq, {head}] f32");
        let text = format!(
            "graph g(q: [batch, {heads}, seq, {head}] f32, k: {keys}, v: {keys}) {{ y = attention q, k, v {{scale = {}{causal}{window}{softcap}}} return y }}",
            self.scale()
        );
        let graph = Graph::parse(&text).unwrap();
        let weights = Random::new(0).weights(&graph);
        let lane = Inputs::in_order(&graph, self.operands());
        values(&Run::new(&graph, &weights, Mode::Training, vec![lane]).finish(0).unwrap().0[0])
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(worst <= RELATIVE * scale, "{what}: off by {worst} where the largest is {scale}");
}

#[test]
fn the_kernel_is_what_the_definition_says() {
    for shape in shapes() {
        assert_close(&format!("{shape:?}"), &shape.kernel(), &shape.brute_force());
    }
}

#[test]
fn the_differentiable_form_is_what_the_definition_says() {
    for shape in shapes() {
        assert_close(&format!("{shape:?}"), &shape.differentiable(), &shape.brute_force());
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, two) = (pool(1), pool(2));
    for shape in shapes() {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        assert_eq!(bits(one.install(|| shape.kernel())), bits(two.install(|| shape.kernel())), "{shape:?}");
    }
}
