//! Property tests over random small graphs: what is returned keeps its bits, and a second run changes nothing.

use attar_compile::pass::{Fuse, PASSES, run_passes};
use attar_graph::{
    Dim, Expr, Fact, Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};
use attar_tensor::{Dtype, Encoding};
use proptest::{prelude::*, sample::Index, test_runner::RngSeed};

use super::numbers::{FOLDED, assert_same};

/// Width of every value between two steps.
const WIDTH: usize = 8;

/// One node, or a few that belong together.
#[derive(Clone, Debug)]
struct Piece {
    kind: usize,
    a: Index,
    b: Index,
    /// Chooses among encodings, and weights that others read, too.
    flavour: u8,
}

fn steps() -> impl Strategy<Value = Vec<Piece>> {
    let step = (0..14usize, any::<Index>(), any::<Index>(), any::<u8>());
    prop::collection::vec(step.prop_map(|(kind, a, b, flavour)| Piece { kind, a, b, flavour }), 1..16)
}

/// A graph in the making.
struct Builder {
    graph: Graph,
    /// Values of one shape, of which steps pick.
    values: Vec<ValueId>,
    positions: ValueId,
    /// Whether values and weights may be in integers.
    integers: bool,
    made: usize,
}

impl Builder {
    fn new(integers: bool) -> Builder {
        let mut graph = Graph::new("random");
        let dims = vec![Dim::symbol("batch"), Dim::symbol("seq")];
        let x = graph.input("x", Fact::activation([dims.clone(), vec![Dim::Constant(WIDTH)]].concat())).unwrap();
        let positions = graph.input("positions", Fact { dims, encoding: Encoding::Plain(Dtype::I64) }).unwrap();
        graph.block("first");
        Builder { graph, values: vec![x], positions, integers, made: 0 }
    }

    fn name(&mut self, word: &str) -> String {
        self.made += 1;
        format!("{word}{}", self.made)
    }

    fn node(&mut self, word: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let name = self.name(word);
        self.graph.node(&name, op, inputs).unwrap()
    }

    fn weight(&mut self, name: &str, dims: &[usize], encoding: &str) -> ValueId {
        if let Some(known) = self.graph.find(name) {
            return known;
        }
        let fact = Fact { dims: dims.iter().map(|n| Dim::Constant(*n)).collect(), encoding: encoding.parse().unwrap() };
        // Two names for every stored tensor: some weights are tied.
        let stored = name.trim_end_matches('\'');
        self.graph.weight(name, fact, Expr::tensor(stored)).unwrap()
    }

    fn linear(&mut self, x: ValueId, flavour: u8) -> ValueId {
        let encoding = ["f32", "bf16", "int4/g8", "int8/row"][usize::from(flavour) % if self.integers { 4 } else { 2 }];
        let tied = if flavour & 4 > 0 { "'" } else { "" };
        // A few weights are read by several layers.
        let number = if flavour & 8 > 0 { usize::from(flavour >> 6) } else { self.made + 100 };
        let word = encoding.split('/').next().unwrap();
        let weight = self.weight(&format!("{word}.w{number}{tied}"), &[WIDTH, WIDTH], encoding);
        let mut inputs = vec![x, weight];
        if flavour & 16 > 0 {
            let name = self.name("bias");
            inputs.push(self.weight(&name, &[WIDTH], "f32"));
        }
        self.node("linear", Op::Linear, &inputs)
    }

    fn quantize(&mut self, x: ValueId, flavour: u8) -> ValueId {
        let mut inputs = vec![x];
        if flavour & 1 > 0 {
            inputs.push(self.weight(&format!("s{}.scale", flavour >> 7), &[1], "f32"));
        }
        self.node("rounded", Op::Quantize { bits: 8 }, &inputs)
    }

    /// Attention with everything around it; keys in a cache and rotated, if the flavour has them so.
    fn attention(&mut self, x: ValueId, other: ValueId, flavour: u8) -> ValueId {
        let (heads, rotated, normed) = (2, flavour & 1 > 0, flavour & 32 > 0);
        let rope = Op::Rope(Rope { theta: 100.0, scaling: Scaling::Default });
        let mut parts = Vec::new();
        for at in 0..3u8 {
            let from = if flavour & 2 > 0 && at == 0 { other } else { x };
            let made = self.linear(from, flavour.rotate_left(at.into()));
            let mut part = self.node("split", Op::SplitHeads { heads }, &[made]);
            if normed && at < 2 {
                let gain = self.name("gain");
                let gain = self.weight(&gain, &[WIDTH / heads], "f32");
                part = self.node("normed", Op::RmsNorm { epsilon: 1e-5 }, &[part, gain]);
            }
            if rotated && at < 2 {
                part = self.node("rotated", rope.clone(), &[part, self.positions]);
            }
            if at > 0 {
                let name = self.name("state");
                part = self.node("cache", Op::Cache { name }, &[part]);
            }
            parts.push(part);
        }
        let mixed = self.node("mixed", Op::Attention(Attention::causal(0.5)), &parts);
        self.node("merged", Op::MergeHeads, &[mixed])
    }

    fn step(&mut self, step: &Piece) {
        // Mostly of the latest, so that most of the graph is alive.
        let latest = self.values.len().saturating_sub(2);
        let (a, b) = (*step.a.get(&self.values[latest..]), *step.b.get(&self.values));
        let flavour = step.flavour;
        let made = match step.kind {
            0 | 1 => self.linear(a, flavour),
            2 => {
                let gain = self.name("gain");
                let gain = self.weight(&gain, &[WIDTH], "f32");
                self.node("norm", Op::RmsNorm { epsilon: 1e-5 }, &[a, gain])
            }
            3 => self.node("sum", Op::Add, &[a, b]),
            4 => self.node("product", Op::Mul, &[a, b]),
            5 => self.node("silu", Op::Silu, &[a]),
            6 => self.node("gated", Op::Swiglu, &[a, b]),
            7 if self.integers => self.quantize(a, flavour),
            8 if self.integers => {
                let once = self.quantize(a, flavour);
                self.quantize(once, flavour)
            }
            9 => {
                let split = self.node("split", Op::SplitHeads { heads: 2 }, &[a]);
                self.node("merged", Op::MergeHeads, &[split])
            }
            10 => {
                let all = self.node("all", Op::Concat, &[a, b]);
                let start = usize::from(flavour) % (WIDTH + 1);
                self.node("slice", Op::Slice { start, length: WIDTH }, &[all])
            }
            11 => self.attention(a, b, flavour),
            12 => {
                let (gate, up) = (self.linear(a, flavour), self.linear(a, flavour ^ 64));
                self.node("gated", Op::Swiglu, &[gate, up])
            }
            13 => {
                let name = self.name("block");
                self.graph.block(name);
                return;
            }
            _ => return,
        };
        self.values.push(made);
    }

    /// The last value is returned, and perhaps another.
    fn finish(mut self, other: &Index) -> Graph {
        let made = self.values.split_off(1);
        let Some(last) = made.last() else {
            let y = self.node("y", Op::Silu, &[self.values[0]]);
            self.graph.output(y);
            return self.graph;
        };
        self.graph.output(*last);
        if other.index(4) == 0 && other.get(&made) != last {
            self.graph.output(*other.get(&made));
        }
        self.graph
    }
}

fn graph(steps: &[Piece], other: &Index, integers: bool) -> Graph {
    let mut builder = Builder::new(integers);
    steps.iter().for_each(|step| builder.step(step));
    let graph = builder.finish(other);
    graph.verify().unwrap();
    graph
}

fn config(cases: u32, seed: u64) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Default::default() }
}

#[test]
fn passes_keep_the_bits_of_random_graphs() {
    let fired = std::cell::RefCell::new(std::collections::BTreeMap::<&str, usize>::new());
    proptest!(config(1_000, 1), |(steps in steps(), other in any::<Index>())| {
        let before = graph(&steps, &other, true);
        let (after, reports) = Fuse::default().run(&before).unwrap();
        for report in reports.iter().filter(|report| !report.changes.is_empty()) {
            *fired.borrow_mut().entry(report.name).or_default() += 1;
        }
        prop_assert_eq!(Graph::parse(&after.to_string()).unwrap().to_string(), after.to_string());
        assert_same(&before, &after, None);
        let apart = after.legalize(&|op| op.fused().is_none()).unwrap();
        apart.verify().unwrap();
        assert_same(&before, &apart, None);
    });
    // A pass that never fires here is not tested here.
    let fired = fired.into_inner();
    for pass in PASSES.iter().filter(|pass| pass.is_exact()) {
        assert!(fired.get(pass.name()).is_some_and(|times| *times >= 10), "{}: {fired:?}", pass.name());
    }
}

#[test]
fn every_pass_alone_is_idempotent_on_random_graphs() {
    proptest!(config(300, 2), |(steps in steps(), other in any::<Index>())| {
        let before = graph(&steps, &other, true);
        for pass in PASSES {
            let (once, _) = run_passes(&before, &[*pass]).unwrap();
            let (twice, reports) = run_passes(&once, &[*pass]).unwrap();
            prop_assert!(reports[0].changes.is_empty(), "{}: {:?}\n{}", pass.name(), reports[0].changes, once);
            prop_assert_eq!(twice.to_string(), once.to_string());
        }
    });
}

/// Without integers: a rounding that another rounding moved would hide what is looked for.
#[test]
fn folded_norms_keep_the_values_of_random_graphs() {
    let fired = std::cell::Cell::new(0);
    proptest!(config(300, 3), |(steps in steps(), other in any::<Index>())| {
        let before = graph(&steps, &other, false);
        let (after, reports) = run_passes(&before, PASSES).unwrap();
        let folded = reports.iter().filter(|report| report.name == "fold_norms").map(|report| report.changes.len());
        fired.set(fired.get() + folded.sum::<usize>());
        assert_same(&before, &after, Some(FOLDED));
    });
    assert!(fired.get() >= 10, "{} norms were folded", fired.get());
}
