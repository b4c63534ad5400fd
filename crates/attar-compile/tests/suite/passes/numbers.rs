//! What a graph computes of seeded numbers.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use attar_graph::{Expr, Fact, Graph, Inputs, Mode, Run, SourceWeights, State};
use attar_tensor::{Digest, Dtype, Encoding, QuantizedTensor, Result, Source, TensorInfo};
use candle_core::{Device, Tensor};

/// Largest difference over the largest value, where a pass may round: a product a weight is rounded before it is summed
/// and not after, and each layer carries on what the last one lost.
pub(crate) const FOLDED: f32 = 1e-4;

/// A linear congruential generator: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn of(name: &str) -> Random {
        Random(name.bytes().fold(0x9e37_79b9_7f4a_7c15, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }

    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(end)) >> 32) as u32
    }

    /// From -1 to 1.
    fn number(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Stored tensors in memory, each made from its name.
struct Stored {
    tensors: BTreeMap<String, TensorInfo>,
    plain: BTreeMap<String, Vec<f32>>,
    quantized: BTreeMap<String, QuantizedTensor>,
}

impl Stored {
    /// Every tensor that an expression of `graph` names.
    fn of(graph: &Graph) -> Stored {
        let mut all = Stored { tensors: BTreeMap::new(), plain: BTreeMap::new(), quantized: BTreeMap::new() };
        for (_, value, expr) in graph.weights() {
            let info = TensorInfo { dims: value.fact.constant_dims().unwrap(), encoding: value.fact.encoding };
            match expr {
                Expr::Tensor(name) => all.add(name, info),
                Expr::Halves(of, _) => all.add(of.tensor_name(), info),
                other => panic!("filetests start from what is stored, not from {other}"),
            }
        }
        all
    }

    fn add(&mut self, name: &str, info: TensorInfo) {
        let (mut random, count) = (Random::of(name), info.elements());
        match info.encoding {
            Encoding::Plain(Dtype::I8 | Dtype::I16) => {
                self.plain.insert(name.into(), (0..count).map(|_| random.below(16) as f32).collect());
            }
            // Scales of activations, which are positive.
            Encoding::Plain(_) if name.ends_with("scale") => {
                self.plain.insert(name.into(), (0..count).map(|_| 0.01 + 0.02 * random.number().abs()).collect());
            }
            Encoding::Plain(dtype) => {
                let values = (0..count).map(|_| dtype.round(random.number() * 0.5)).collect();
                self.plain.insert(name.into(), values);
            }
            Encoding::Quantized(scheme) => {
                let [rows, columns] = info.matrix();
                let mut tensor = QuantizedTensor { dims: [rows, columns], ..QuantizedTensor::empty(scheme, columns) };
                let scales = scheme.scale_count([rows, columns]);
                let dtype = scheme.scale.plain().expect("filetests have plain scales");
                tensor.scales = (0..scales).map(|_| dtype.round(0.01 + 0.05 * random.number().abs())).collect();
                if !scheme.is_symmetric() {
                    tensor.zeros = (0..scales).map(|_| random.below(1 << scheme.grid.bits()) as u8).collect();
                }
                for _ in 0..rows {
                    let codes: Vec<u8> = (0..columns).map(|_| random.below(1 << scheme.grid.bits()) as u8).collect();
                    scheme.grid.packing().pack(&codes, &mut tensor.codes);
                }
                self.quantized.insert(name.into(), tensor);
            }
            Encoding::Blocks(_) => panic!("filetests have no blocks"),
        }
        self.tensors.insert(name.into(), info);
    }
}

impl Source for Stored {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [_, columns] = self.check(name, &rows)?.matrix();
        match self.plain.get(name) {
            Some(values) => out.copy_from_slice(&values[rows.start * columns..rows.end * columns]),
            None => {
                let tensor = &self.quantized[name];
                let mut all = vec![0.0; tensor.dims[0] * columns];
                tensor.decode(&mut all);
                out.copy_from_slice(&all[rows.start * columns..rows.end * columns]);
            }
        }
        Ok(())
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        self.check(name, &rows)?;
        let tensor = self.quantized.get(name).ok_or_else(|| self.unknown(name))?;
        assert_eq!(rows, 0..tensor.dims[0], "a product reads all rows");
        Ok(tensor.clone())
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        Ok(Digest::of(name.as_bytes()))
    }
}

/// The tensor that stands for an input: tokens and positions count from 0, a past in front; there is one
/// segment.
fn input(name: &str, fact: &Fact, seq: usize, past: usize) -> Tensor {
    let symbol = |name: &str| match name {
        "batch" => Some(2),
        "seq" => Some(seq),
        "past" => Some(past),
        other => panic!("no size for `{other}`"),
    };
    let dims: Vec<usize> = fact.dims.iter().map(|dim| dim.bind(&symbol).unwrap()).collect();
    let (mut random, count) = (Random::of(&format!("{name} {past}")), dims.iter().product::<usize>());
    match fact.encoding {
        Encoding::Plain(Dtype::I64) => {
            let one = |at: usize| if name == "token_types" { 0 } else { (past + at % seq) as u32 };
            let all: Vec<u32> = (0..count).map(one).collect();
            Tensor::from_vec(all, dims, &Device::Cpu).unwrap()
        }
        _ => Tensor::from_vec((0..count).map(|_| random.number()).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap(),
    }
}

/// Every output of two calls that share a state, over the stored tensors of `original`.
pub(crate) fn outputs(graph: &Graph, original: &Graph) -> Vec<Vec<f32>> {
    let source: Arc<dyn Source> = Arc::new(Stored::of(original));
    graph.verify_weights(&*source).unwrap_or_else(|error| panic!("{error}\n{graph}"));
    let weights = SourceWeights(source);
    let mut state = Some(State::default());
    let mut all = Vec::new();
    for (seq, past) in [(5, 0), (3, 5)] {
        let tensors = graph.inputs().iter().map(|id| input(&graph.get(*id).name, graph.fact(*id), seq, past));
        let lane = Inputs { state: state.take(), ..Inputs::in_order(graph, tensors) };
        let (outputs, after) = Run::new(graph, &weights, Mode::Inference, vec![lane]).finish(0).unwrap();
        state = after;
        all.extend(outputs.iter().map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap()));
    }
    all
}

/// That `after` computes what `before` does: to the bit, or within `tolerance` of the largest value.
pub(crate) fn assert_same(before: &Graph, after: &Graph, tolerance: Option<f32>) {
    let (want, got) = (outputs(before, before), outputs(after, before));
    assert_eq!(want.len(), got.len());
    for (want, got) in want.iter().zip(&got) {
        assert_eq!(want.len(), got.len());
        let same = match tolerance {
            None => want.iter().zip(got).all(|(w, g)| w.to_bits() == g.to_bits()),
            Some(tolerance) => {
                let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                want.iter().zip(got).all(|(w, g)| !largest.is_finite() || (w - g).abs() <= tolerance * largest)
            }
        };
        assert!(same, "{tolerance:?}\n{before}\n{after}\n{want:?}\n{got:?}");
    }
}
