//! Seeded numbers and tensors.

use std::collections::HashMap;

use attar_graph::{Expr, Fact, Graph, Result, TensorWeights, Weights};
use attar_tensor::{Dtype, Encoding};
use candle_core::{Device, Tensor};

/// Smaller than any vocabulary of the filetests.
const TOKENS: u32 = 16;

/// A linear congruential generator: the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(end)) >> 32) as u32
    }

    /// From -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Tensor {
        Tensor::from_vec(self.numbers(dims.iter().product()), dims, &Device::Cpu).unwrap()
    }

    /// A value of that fact: small whole numbers for tokens, positions and zeros, or else from -1 to 1.
    pub(crate) fn value(&mut self, fact: &Fact, sizes: Sizes) -> Tensor {
        let dims = sizes.of(fact);
        match fact.encoding {
            Encoding::Plain(Dtype::I64) => {
                let all: Vec<u32> = (0..dims.iter().product()).map(|_| self.below(TOKENS)).collect();
                Tensor::from_vec(all, dims, &Device::Cpu).unwrap()
            }
            Encoding::Plain(Dtype::I8 | Dtype::I16) => {
                let all: Vec<f32> = (0..dims.iter().product()).map(|_| self.below(TOKENS) as f32).collect();
                Tensor::from_vec(all, dims, &Device::Cpu).unwrap()
            }
            _ => self.tensor(&dims),
        }
    }

    /// Every weight of `graph`.
    pub(crate) fn weights(&mut self, graph: &Graph) -> TensorWeights<'static> {
        let tensors = graph.weights().map(|(_, value, _)| (value.name.clone(), self.value(&value.fact, Sizes::default())));
        TensorWeights { tensors: tensors.collect::<HashMap<_, _>>(), below: &Nothing }
    }
}

/// No weight.
struct Nothing;

impl Weights for Nothing {
    fn whole(&self, name: &str, _: &Expr) -> Result<Tensor> {
        panic!("`{name}` is not there")
    }
}

/// The values of the symbols of a fact.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    pub(crate) past: usize,
}

impl Sizes {
    pub(crate) fn of(self, fact: &Fact) -> Vec<usize> {
        let symbol = |name: &str| match name {
            "batch" => Some(self.batch),
            "seq" => Some(self.seq),
            "past" => Some(self.past),
            other => panic!("no size for `{other}`"),
        };
        fact.dims.iter().map(|dim| dim.bind(&symbol).unwrap()).collect()
    }
}
