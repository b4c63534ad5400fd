//! Runs over every entry of [`OPS`], unasked: its examples are `testdata/filetests/ops/NAME.ir` and `NAME-*.ir`.

use attar_graph::{Dim, Graph, Inputs, Mode, OPS, Op, Run, State, ValueId};
use candle_core::{DType, Tensor, Var};

use crate::{
    random::{Random, Sizes},
    texts::cases_of,
};

/// Largest difference over the largest value, between two ways to compute the same in f32.
const RELATIVE: f32 = 2e-6;

/// Random shapes an example.
const SHAPES: u64 = 8;

/// An example with its sizes: a call without a past, and the next one.
struct Example {
    name: String,
    graph: Graph,
    calls: [Sizes; 2],
    seed: u64,
}

fn examples() -> Vec<Example> {
    let cases = OPS.iter().flat_map(|def| cases_of(def.name));
    let of = |(name, graph): (String, Graph)| {
        (0..SHAPES).map(move |seed| {
            let mut random = Random::new(seed);
            let (batch, past, seq) = (1 + random.below(3) as usize, 1 + random.below(20) as usize, 1 + random.below(20) as usize);
            let calls = [Sizes { batch, seq: past, past: 0 }, Sizes { batch, seq, past }];
            Example { name: format!("{name} {:?}", calls[1]), graph: graph.clone(), calls, seed }
        })
    };
    cases.map(|case| (case.name(), Graph::parse(&case.input).unwrap())).flat_map(of).collect()
}

impl Example {
    fn inputs(&self, call: usize) -> Vec<Tensor> {
        let mut random = Random::new(self.seed ^ ((call as u64) << 32));
        self.graph.inputs().iter().map(|id| random.value(self.graph.fact(*id), self.calls[call])).collect()
    }

    /// The outputs of both calls; `graph` computes what the example does.
    fn run(&self, graph: &Graph, mode: Mode) -> [Tensor; 2] {
        let mut state = State::default();
        [0, 1].map(|call| evaluate(graph, mode, self.seed, self.inputs(call), &mut state))
    }
}

/// The first output.
fn evaluate(graph: &Graph, mode: Mode, seed: u64, tensors: Vec<Tensor>, state: &mut State) -> Tensor {
    let weights = Random::new(seed).weights(graph);
    let lane = Inputs { state: Some(std::mem::take(state)), ..Inputs::in_order(graph, tensors) };
    let (outputs, after) = Run::new(graph, &weights, mode, vec![lane]).finish(0).unwrap();
    *state = after.unwrap();
    outputs[0].clone()
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (values(got), values(want));
    let scale = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= RELATIVE * scale, "{what}: off by {worst} where the largest is {scale}");
}

#[test]
fn a_value_has_the_shape_that_was_inferred() {
    for example in examples() {
        let fact = example.graph.fact(example.graph.outputs()[0]);
        for (call, output) in example.run(&example.graph, Mode::Inference).iter().enumerate() {
            assert_eq!(output.dims(), example.calls[call].of(fact), "{}, call {call}", example.name);
        }
    }
}

#[test]
fn both_modes_mean_the_same() {
    for example in examples() {
        let (fast, slow) = (example.run(&example.graph, Mode::Inference), example.run(&example.graph, Mode::Training));
        fast.iter().zip(&slow).for_each(|(fast, slow)| assert_close(&example.name, fast, slow));
    }
}

/// Of a derivative by differences: curvature and f32.
const DIFFERENCE: f64 = 1e-2;

/// Steps that train go back through any op. Rounding is left out: its gradient is a choice.
#[test]
fn training_has_the_gradients_of_what_is_computed() {
    let rounds = |graph: &Graph| graph.nodes().iter().any(|node| matches!(node.op, Op::Quantize { .. }));
    for example in examples() {
        let parts = example.graph.legalize(&|op| op.fused().is_none()).unwrap();
        if rounds(&parts) {
            continue;
        }
        let inputs = example.inputs(0);
        let Some(at) = inputs.iter().position(|x| x.dtype() == DType::F32) else { continue };
        let mut random = Random::new(example.seed + 77);
        let (step, x) = (1e-2, Var::from_tensor(&inputs[at]).unwrap());
        let along = random.tensor(x.dims());
        let weights = random.tensor(example.run(&example.graph, Mode::Training)[0].dims());
        let loss = |x: &Tensor| {
            let mut tensors = inputs.clone();
            tensors[at] = x.clone();
            let y = evaluate(&example.graph, Mode::Training, example.seed, tensors, &mut State::default());
            (y * &weights).unwrap().sum_all().unwrap()
        };
        let at_step = |h: f64| loss(&(x.as_detached_tensor() + along.affine(h, 0.0)).unwrap()).to_scalar::<f32>().unwrap();
        let wanted = f64::from(at_step(step) - at_step(-step)) / (2.0 * step);
        let gradients = loss(x.as_tensor()).backward().unwrap();
        let gradient = gradients.get(&x).unwrap_or_else(|| panic!("{}: no gradient", example.name));
        let products = (gradient * &along).unwrap();
        let sum = |x: Tensor| f64::from(x.sum_all().unwrap().to_scalar::<f32>().unwrap());
        let (found, scale) = (sum(products.clone()), sum(products.sqr().unwrap()).sqrt().max(1.0));
        assert!((found - wanted).abs() <= DIFFERENCE * scale, "{}: {found}, by differences {wanted}", example.name);
    }
}

#[test]
fn a_decomposition_means_the_same() {
    for example in examples() {
        let simpler = example.graph.legalize(&|_| false).unwrap();
        simpler.verify().unwrap();
        let single = |node: &attar_graph::Node| node.op.def().decompose.is_none() && node.op.def().several.is_none();
        assert!(simpler.nodes().iter().all(single), "{}: {simpler}", example.name);
        assert_eq!(simpler.fact(simpler.outputs()[0]), example.graph.fact(example.graph.outputs()[0]));
        let (got, want) = (example.run(&simpler, Mode::Inference), example.run(&example.graph, Mode::Inference));
        got.iter().zip(&want).for_each(|(got, want)| assert_close(&example.name, got, want));
    }
}

#[test]
fn attributes_survive_their_text_form() {
    let ops = |graph: &Graph| graph.nodes().iter().map(|node| node.op.clone()).collect::<Vec<Op>>();
    for example in examples() {
        assert_eq!(ops(&Graph::parse(&example.graph.to_string()).unwrap()), ops(&example.graph), "{}", example.name);
    }
}

/// The runner of logits computes positions of the last block one by one on the strength of this.
#[test]
fn a_pointwise_op_needs_only_its_own_position() {
    let one = |graph: &Graph, id: ValueId, tensor: &Tensor, position: usize| {
        let along = graph.fact(id).dims.iter().position(|dim| *dim == Dim::symbol("seq"));
        along.map_or(tensor.clone(), |along| tensor.narrow(along, position, 1).unwrap())
    };
    for example in examples().iter().filter(|example| example.graph.nodes().iter().all(|node| node.op.is_pointwise())) {
        let (graph, inputs) = (&example.graph, example.inputs(0));
        let position = example.calls[0].seq / 2;
        let whole = evaluate(graph, Mode::Inference, example.seed, inputs.clone(), &mut State::default());
        let alone = graph.inputs().iter().zip(&inputs).map(|(id, tensor)| one(graph, *id, tensor, position)).collect();
        let alone = evaluate(graph, Mode::Inference, example.seed, alone, &mut State::default());
        assert_close(&example.name, &alone, &one(graph, graph.outputs()[0], &whole, position));
    }
}

/// Of what a fused node comes apart into.
fn parts(graph: &Graph, sizes: Sizes) -> u64 {
    let parts = graph.legalize(&|_| false).unwrap();
    let of = |node: &attar_graph::Node| {
        let dims: Vec<Vec<usize>> = node.inputs.iter().map(|id| sizes.of(parts.fact(*id))).collect();
        (node.op.def().macs)(&node.op, &dims)
    };
    parts.nodes().iter().map(of).sum()
}

/// A body is evaluated as its nodes are.
#[test]
fn a_fused_node_has_the_bits_of_its_parts() {
    for example in examples().iter().filter(|example| example.graph.nodes()[0].op.fused().is_some()) {
        let parts = example.graph.legalize(&|op| op.fused().is_none()).unwrap();
        for mode in [Mode::Inference, Mode::Training] {
            let (fused, apart) = (example.run(&example.graph, mode), example.run(&parts, mode));
            for (fused, apart) in fused.iter().zip(&apart) {
                let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
                assert!(bits(fused).eq(bits(apart)), "{}", example.name);
            }
        }
    }
}

/// What the decoder family is costed by: a product of matrices, and two for the scores and sums of attention.
#[test]
fn multiply_accumulates_are_those_of_the_products() {
    for example in examples() {
        let (graph, sizes) = (&example.graph, example.calls[0]);
        let weights = Random::new(example.seed).weights(graph);
        let mut run = Run::new(graph, &weights, Mode::Inference, vec![Inputs::in_order(graph, example.inputs(0))]);
        run.step(None).unwrap();
        let node = &graph.nodes()[0];
        let dims: Vec<Vec<usize>> = node.inputs.iter().map(|id| sizes.of(graph.fact(*id))).collect();
        let product = |dims: &[usize]| dims.iter().product::<usize>() as u64;
        let wanted = match &node.op {
            Op::Linear => product(&dims[0]) * dims[1][0] as u64,
            Op::Attention(_) => 2 * product(&dims[0]) * dims[1][2] as u64,
            Op::Scores { .. } => product(&dims[0]) * dims[1][2] as u64,
            Op::Mix => product(&dims[0]) * dims[1][3] as u64,
            Op::Fused(_) => parts(graph, sizes),
            _ => 0,
        };
        assert_eq!((node.op.def().macs)(&node.op, &dims), wanted, "{}", example.name);
        assert_eq!(run.macs(), wanted, "{}", example.name);
    }
}
