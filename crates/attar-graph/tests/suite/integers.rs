//! Quantized values and products of integers against plain loops over i64, to the bit.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use attar_graph::{
    Graph, Inputs, Mode, Run, SourceWeights, TensorWeights,
    integer::{IntegerMatrix, Rounding, SMALLEST_RANGE},
};
use attar_tensor::{Digest, Encoding, Fit, Granularity, QuantizedTensor, Scheme, Source, TensorInfo, pack};
use candle_core::{Device, Tensor, Var};

use crate::random::Random;

/// Codes of a weight, random and outermost ones, with scales of both signs.
fn weight(scheme: &str, [rows, columns]: [usize; 2], random: &mut Random) -> QuantizedTensor {
    let scheme: Scheme = scheme.parse().unwrap();
    let bits = scheme.grid.bits();
    let mut tensor = QuantizedTensor { dims: [rows, columns], ..QuantizedTensor::empty(scheme, columns) };
    for row in 0..rows {
        let extreme = row % 3 == 0;
        let codes: Vec<u8> = (0..columns).map(|_| if extreme { 0 } else { random.below(1 << bits) as u8 }).collect();
        pack::pack_row(&codes, bits, &mut tensor.codes);
    }
    let count = scheme.scale_count([rows, columns]);
    tensor.scales = (0..count).map(|_| scheme.scale.round(random.number() * 0.01).unwrap()).collect();
    if !scheme.is_symmetric() {
        tensor.zeros = (0..count).map(|_| random.below(1 << bits) as u8).collect();
    }
    tensor
}

/// What the module `integer` promises, one product after the other.
fn plain(x: &[f32], rounding: &Reference, weight: &QuantizedTensor) -> Vec<f32> {
    let [rows, columns] = weight.dims;
    let (group, groups) = (weight.scheme.group(columns), weight.scheme.groups(columns));
    let mut y = Vec::new();
    for x in x.chunks(columns) {
        let (scale, codes) = rounding.codes(x);
        for row in 0..rows {
            let mut bytes = vec![0; columns];
            weight.codes_of(row, &mut bytes);
            let mut sum = 0.0f32;
            for g in 0..groups {
                let Fit { scale, zero, .. } = weight.fit(row, g);
                let inputs = g * group..columns.min((g + 1) * group);
                let dot: i64 = inputs.map(|i| codes[i] * (i64::from(bytes[i]) - i64::from(zero))).sum();
                sum += dot as f32 * scale;
            }
            y.push(sum * scale);
        }
    }
    y
}

/// The formula of the op, in f64 and i64 where f32 would round twice.
struct Reference {
    bits: u32,
    fixed: Option<(f32, i64)>,
}

impl Reference {
    fn rounding(&self) -> Rounding {
        match self.fixed {
            None => Rounding::dynamic(self.bits),
            Some((scale, 0)) => Rounding::fixed(self.bits, vec![scale], vec![]),
            Some((scale, zero)) => Rounding::fixed(self.bits, vec![scale], vec![zero as f32]),
        }
    }

    /// The scale of a row, and the distances of its codes from their zero.
    fn codes(&self, row: &[f32]) -> (f32, Vec<i64>) {
        let half = 1i64 << (self.bits - 1);
        let (scale, zero, low) = match self.fixed {
            Some((scale, zero)) => (scale, zero, -half),
            None => {
                let most = row.iter().fold(SMALLEST_RANGE, |most, x| most.max(x.abs()));
                (most / (half - 1) as f32, 0, 1 - half)
            }
        };
        let code = |x: &f32| ((x / scale).round_ties_even() as i64 + zero).clamp(low, half - 1) - zero;
        (scale, row.iter().map(code).collect())
    }
}

fn roundings() -> Vec<Reference> {
    let mut all = Vec::new();
    for bits in [4, 8, 16] {
        let scale = 1.7 / f32::powi(2.0, bits as i32);
        let most = 1i64 << (bits - 1);
        for fixed in [None, Some((scale, 0)), Some((scale, most / 3)), Some((scale, -most)), Some((scale, most - 1))] {
            all.push(Reference { bits, fixed });
        }
    }
    all
}

/// Values that reach the outermost codes, a row of zeros, and one of tiny numbers.
fn values(tokens: usize, width: usize, random: &mut Random) -> Vec<f32> {
    let mut x = random.numbers(tokens * width);
    for (token, row) in x.chunks_mut(width).enumerate() {
        match token % 5 {
            1 => row.fill(0.0),
            2 => row.iter_mut().for_each(|x| *x *= 1e-33),
            3 => row.iter_mut().for_each(|x| *x = x.signum() * 1.5),
            _ => {}
        }
    }
    x
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn rounded_values_are_those_of_the_formula() {
    let mut random = Random::new(3);
    for reference in roundings() {
        let (tokens, width) = (9, 37);
        let x = values(tokens, width, &mut random);
        let mut found = vec![0.0; x.len()];
        reference.rounding().round(&x, width, &mut found);
        for (x, found) in x.chunks(width).zip(found.chunks(width)) {
            let (scale, codes) = reference.codes(x);
            let wanted: Vec<f32> = codes.iter().map(|code| *code as f32 * scale).collect();
            assert_eq!(found, wanted, "{:?}", reference.rounding());
        }
    }
}

/// Sums below and above 2^24, groups that end early, codes that are taken apart.
#[test]
fn a_product_of_integers_is_that_of_plain_loops_to_the_bit() {
    let schemes =
        ["int4/g64", "int4/g32/asymmetric", "int2/g16", "int3/g48/short", "int8/row", "int8/row/asymmetric", "int8/tensor"];
    let mut random = Random::new(4);
    for scheme in schemes {
        for [tokens, rows, columns] in [[1, 5, 64], [7, 9, 192], [130, 3, 1344], [3, 515, 128], [2, 4, 5120]] {
            let weight = weight(scheme, [rows, columns], &mut random);
            let matrix = IntegerMatrix::new(&weight).unwrap();
            for reference in roundings() {
                let x = values(tokens, columns, &mut random);
                let (rounding, mut rounded) = (reference.rounding(), vec![0.0; x.len()]);
                rounding.round(&x, columns, &mut rounded);
                let found = matrix.product(&rounded, &rounding.row_scales(&x, columns).unwrap());
                let what = format!("{scheme}, {tokens} x {rows} x {columns}, {rounding:?}");
                assert_eq!(found, plain(&x, &reference, &weight), "{what}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit_of_a_product() {
    let mut random = Random::new(5);
    let (weight, x) = (weight("int4/g64", [300, 576], &mut random), values(400, 576, &mut random));
    let (matrix, rounding) = (IntegerMatrix::new(&weight).unwrap(), Rounding::dynamic(8));
    let product = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut rounded = vec![0.0; x.len()];
            rounding.round(&x, 576, &mut rounded);
            bits(&matrix.product(&rounded, &rounding.row_scales(&x, 576).unwrap()))
        })
    };
    assert_eq!(product(1), product(2));
}

/// One weight, `w`.
struct One(BTreeMap<String, TensorInfo>, QuantizedTensor);

impl One {
    fn new(tensor: QuantizedTensor) -> Arc<One> {
        let info = TensorInfo { dims: tensor.dims.to_vec(), encoding: Encoding::Quantized(tensor.scheme) };
        Arc::new(One(BTreeMap::from([("w".into(), info)]), tensor))
    }
}

impl Source for One {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.0
    }

    fn read(&self, _: &str, _: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        self.1.decode(out);
        Ok(())
    }

    fn read_quantized(&self, _: &str, _: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
        Ok(self.1.clone())
    }

    fn digest(&self, _: &str) -> attar_tensor::Result<Digest> {
        unreachable!("nothing is cached here")
    }
}

fn run(graph: &str, tensor: &QuantizedTensor, x: &Tensor) -> Vec<f32> {
    let graph = Graph::parse(graph).unwrap();
    let below = SourceWeights(One::new(tensor.clone()));
    let scale = Tensor::new(&[0.01f32], &Device::Cpu).unwrap();
    let each = Tensor::from_vec(vec![0.01f32; 128], 128, &Device::Cpu).unwrap();
    let tensors = [("scale".to_owned(), scale), ("each".to_owned(), each)].into();
    let weights = TensorWeights { tensors, below: &below };
    let lane = Inputs::in_order(&graph, [x.clone()]);
    let output = Run::new(&graph, &weights, Mode::Inference, vec![lane]).finish(0).unwrap().0.remove(0);
    output.flatten_all().unwrap().to_vec1().unwrap()
}

/// In a graph, too: what reads a quantized value and has a weight in codes is computed in integers.
#[test]
fn a_linear_layer_of_a_graph_computes_in_integers() {
    let mut random = Random::new(6);
    let tensor = weight("int4/g64", [6, 128], &mut random);
    let x = random.tensor(&[2, 5, 128]);
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let text = |operands: &str| {
        format!(
            "graph g(x: [batch, seq, 128] f32) {{ q = quantize x{operands} {{bits = 8}} y = linear q, weight(\"w\": [6, 128] int4/g64) return y }}"
        )
    };
    let dynamic = Reference { bits: 8, fixed: None };
    let fixed = Reference { bits: 8, fixed: Some((0.01, 0)) };
    assert_eq!(run(&text(""), &tensor, &x), plain(&values, &dynamic, &tensor));
    let one = text(", weight(\"scale\": [1] f32)");
    assert_eq!(run(&one, &tensor, &x), plain(&values, &fixed, &tensor));
    // Per-channel scales cannot be factored out of the sum, which is then computed in f32.
    let each = run(&text(", weight(\"each\": [128] f32)"), &tensor, &x);
    let wanted = plain(&values, &fixed, &tensor);
    let largest = wanted.iter().fold(0.0f32, |most, y| most.max(y.abs()));
    assert!(each.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));
}

#[test]
fn a_scheme_for_the_whole_tensor_has_one_scale() {
    assert_eq!("int8/tensor".parse::<Scheme>().unwrap().granularity, Granularity::Tensor);
    let tensor = weight("int8/tensor", [3, 64], &mut Random::new(7));
    assert_eq!(tensor.scales.len(), 1);
    assert_eq!(IntegerMatrix::new(&tensor).unwrap().dims(), [3, 64]);
}

/// Straight through where codes do not end, nothing where they do; the scale learns as LSQ has it.
#[test]
fn gradients_go_straight_through() {
    let text = "graph g(x: [seq, 4] f32) { y = quantize x, weight(\"s\": [1] f32) {bits = 4} return y }";
    let graph = Graph::parse(text).unwrap();
    let x = Var::new(&[[0.26f32, -0.9, 3.0, -3.0]], &Device::Cpu).unwrap();
    let s = Var::new(&[0.25f32], &Device::Cpu).unwrap();
    let tensors = [("s".to_owned(), s.as_tensor().clone())].into();
    let below = SourceWeights(One::new(weight("int4/g64", [1, 64], &mut Random::new(8))));
    let weights = TensorWeights { tensors, below: &below };
    let lane = Inputs::in_order(&graph, [x.as_tensor().clone()]);
    let y = Run::new(&graph, &weights, Mode::Training, vec![lane]).finish(0).unwrap().0.remove(0);
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.25, -1.0, 1.75, -2.0]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    let of = |v: &Var| gradients.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(of(&x), [1.0, 1.0, 0.0, 0.0]);
    let wanted = (1.0 - 0.26 / 0.25) + (-4.0 + 0.9 / 0.25) + 7.0 - 8.0;
    assert!((of(&s)[0] - wanted).abs() < 1e-5, "{:?}, {wanted}", of(&s));
}
