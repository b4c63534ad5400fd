//! Graphs that are broken by hand are refused: what the builder did is not trusted.

use attar_graph::{
    Axis, Dim, Expr, Fact, Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};
use attar_tensor::{Digest, Dtype, Encoding, QuantizedTensor, Result, Source, TensorInfo};
use std::{collections::BTreeMap, ops::Range};

fn activation(dims: &[usize]) -> Fact {
    Fact::activation(dims.iter().map(|n| Dim::Constant(*n)).collect())
}

/// `y = silu x`, and nothing returned.
fn unfinished() -> (Graph, ValueId) {
    let mut graph = Graph::new("g");
    let x = graph.input("x", activation(&[1, 2, 4])).unwrap();
    let y = graph.node("y", Op::Silu, &[x]).unwrap();
    (graph, y)
}

fn refusal(graph: &Graph) -> String {
    graph.verify().unwrap_err().to_string()
}

#[test]
fn a_graph_that_returns_nothing_is_refused() {
    let (mut graph, y) = unfinished();
    assert_eq!(refusal(&graph), "invalid graph: the graph returns nothing");
    graph.output(y);
    graph.verify().unwrap();
}

#[test]
fn a_block_whose_name_comes_back_is_refused() {
    let mut graph = Graph::new("g");
    let x = graph.input("x", activation(&[4])).unwrap();
    graph.block("a");
    let y = graph.node("y", Op::Silu, &[x]).unwrap();
    graph.block("b");
    let z = graph.node("z", Op::Silu, &[y]).unwrap();
    graph.block("a");
    let u = graph.node("u", Op::Silu, &[z]).unwrap();
    graph.output(u);
    assert_eq!(refusal(&graph), "invalid graph: the nodes of block `a` are not contiguous");
}

#[test]
fn a_weight_cannot_be_returned() {
    let (mut graph, y) = unfinished();
    let fact = Fact { encoding: Encoding::Plain(Dtype::BF16), ..activation(&[4, 4]) };
    let w = graph.weight("w", fact, Expr::tensor("w")).unwrap();
    let z = graph.node("z", Op::Linear, &[y, w]).unwrap();
    graph.output(z);
    graph.verify().unwrap();
    graph.output(w);
    assert_eq!(refusal(&graph), "invalid graph: `w` is a weight; only results of nodes can be returned");
}

#[test]
fn a_refused_name_leaves_the_graph_as_it_was() {
    let (mut graph, y) = unfinished();
    let before = graph.clone();
    assert!(graph.node("x", Op::Silu, &[y]).is_err());
    assert!(graph.input("y", activation(&[1])).is_err());
    assert!(graph.weight("y", activation(&[1]), Expr::tensor("y")).is_err());
    assert_eq!(graph, before);
    graph.output(y);
    graph.verify().unwrap();
}

/// Every op refuses, and none panics, whatever it is given.
#[test]
fn ops_refuse_operands_of_any_other_shape() {
    let attention = |causal, window| Op::Attention(Attention { causal, window, ..Attention::causal(1.0) });
    let rope = |scaling| Op::Rope(Rope { theta: 10_000.0, scaling });
    let ops = [
        Op::Embedding,
        Op::Linear,
        Op::RmsNorm { epsilon: 0.0 },
        Op::SplitHeads { heads: 0 },
        Op::SplitHeads { heads: 3 },
        Op::MergeHeads,
        rope(Scaling::Default),
        rope(Scaling::Factors(vec![])),
        Op::Cache { name: String::new() },
        attention(true, None),
        attention(true, Some(0)),
        attention(false, Some(usize::MAX)),
        Op::LayerNorm { epsilon: 0.0 },
        Op::Gelu,
        Op::GeluTanh,
        Op::Erf,
        Op::Tanh,
        Op::Softcap { cap: f64::NAN },
        Op::Scale { by: f64::INFINITY },
        Op::MeanPool,
        Op::FirstPool,
        Op::Normalize { epsilon: 0.0 },
        Op::Scores { scale: f64::NAN },
        Op::Softmax { causal: true, window: Some(0) },
        Op::Softmax { causal: false, window: None },
        Op::Mix,
        Op::Center,
        Op::MeanSquare,
        Op::Rsqrt { epsilon: 0.0 },
        Op::Swiglu,
        Op::Silu,
        Op::Mul,
        Op::Add,
        Op::Concat,
        Op::Slice { start: usize::MAX, length: 2 },
        Op::Slice { start: 0, length: 0 },
    ];
    let shapes: [&[usize]; 8] =
        [&[], &[0], &[4], &[4, 4], &[1, 0, 3, 0], &[1, 2, 3, 4], &[usize::MAX, usize::MAX, 2, usize::MAX], &[5; 7]];
    let facts: Vec<Fact> = shapes.iter().map(|dims| activation(dims)).collect();
    for op in &ops {
        for count in 0..5u32 {
            for pick in 0..facts.len().pow(count.min(3)) {
                let operands: Vec<&Fact> = (0..count).map(|at| &facts[pick / facts.len().pow(at % 3) % facts.len()]).collect();
                assert!(op.infer("y", &operands).is_err() || (1..=3).contains(&count) || *op == Op::Concat, "{op:?} of {count}");
            }
        }
    }
}

/// One tensor of 12 rows.
struct Twelve(BTreeMap<String, TensorInfo>);

impl Source for Twelve {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.0
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(name, &rows)?;
        rows.zip(out).for_each(|(row, out)| *out = row as f32);
        Ok(())
    }

    fn read_quantized(&self, name: &str, _: Range<usize>) -> Result<QuantizedTensor> {
        Err(self.unknown(name))
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        Ok(Digest::of(name.as_bytes()))
    }
}

fn with_weight(encoding: &str, expr: &str) -> attar_graph::Result<()> {
    let text = format!(r#"graph g(x: [batch, 1] f32) {{ y = linear x, weight("w": [12, 1] {encoding} = {expr}) return y }}"#);
    let info = TensorInfo { dims: vec![12, 1], encoding: Encoding::Plain(Dtype::F32) };
    Graph::parse(&text).unwrap().verify_weights(&Twelve(BTreeMap::from([("t".into(), info)])))
}

#[test]
fn weights_must_be_what_the_graph_says() {
    with_weight("f32", r#"tensor("t")"#).unwrap();
    with_weight("f32", r#"halves(tensor("t"), 3)"#).unwrap();
    with_weight("f32", r#"halves(halves(tensor("t"), 3), 2)"#).unwrap();
    assert!(with_weight("bf16", r#"tensor("t")"#).is_err(), "another encoding");
    assert!(with_weight("f32", r#"tensor("u")"#).is_err(), "another name");
}

#[test]
fn parts_of_expressions_must_go_together() {
    for fits in [
        r#"scale_rows(tensor("t"), ones(12))"#,
        r#"scale_columns(tensor("t"), ones(1))"#,
        r#"rotate_rows(tensor("t"), 4, 0)"#,
        r#"rotate_columns(tensor("t"), 1, 0)"#,
        r#"divide_rows(rotate_rows(halves(tensor("t"), 3), 12, 1), ones(12))"#,
    ] {
        with_weight("f32", fits).unwrap();
        assert!(with_weight("bf16", fits).is_err(), "what is computed is f32: {fits}");
    }
    with_weight("bf16", r#"round(tensor("t"), bf16)"#).unwrap();
    for misfit in [
        r#"round(tensor("t"), bf16)"#,
        r#"scale_rows(tensor("t"), ones(1))"#,
        r#"scale_columns(tensor("t"), ones(12))"#,
        r#"divide_rows(tensor("t"), tensor("t"))"#,
        r#"rotate_rows(tensor("t"), 5, 0)"#,
        r#"rotate_rows(tensor("t"), 24, 0)"#,
        r#"rotate_columns(tensor("t"), 2, 0)"#,
        r#"scale_rows(rotate_rows(tensor("t"), 5, 0), ones(12))"#,
        r#"identity(12)"#,
        r#"ones(12)"#,
    ] {
        assert!(with_weight("f32", misfit).is_err(), "{misfit}");
    }
}

/// Rows read alone, in runs and all at once; the digest changes with every part.
#[test]
fn computed_rows_do_not_depend_on_how_they_are_read() {
    let info = TensorInfo { dims: vec![12, 1], encoding: Encoding::Plain(Dtype::F32) };
    let source = Twelve(BTreeMap::from([("t".into(), info)]));
    let t = || Expr::tensor("t");
    let all = [
        t(),
        t().rotated(Axis::Rows, 4, 0),
        t().rotated(Axis::Rows, 4, 1),
        t().rotated(Axis::Rows, 12, 0),
        t().rotated(Axis::Columns, 1, 0),
        t().rounded(Dtype::BF16),
        t().rounded(Dtype::F16),
        t().scaled(Axis::Columns, Expr::Ones(1)),
        t().divided(Axis::Columns, Expr::Ones(1)),
        Expr::Halves(Box::new(t().rotated(Axis::Rows, 6, 0)), 2),
    ];
    let mut digests = std::collections::BTreeSet::new();
    for expr in &all {
        let read = |rows: Range<usize>| {
            let mut out = vec![f32::NAN; rows.len()];
            expr.read(&source, rows, &mut out).unwrap();
            out
        };
        let whole = read(0..12);
        assert!(whole.iter().all(|x| x.is_finite()));
        for (start, end) in (0..12).flat_map(|start| (start..=12).map(move |end| (start, end))) {
            assert_eq!(read(start..end), whole[start..end], "{expr}: {start}..{end}");
        }
        assert!(digests.insert(expr.digest(&source).unwrap()), "{expr}");
    }
}

/// `x (I x R)` against `(I x R^T) w`: both together are no change, for any layer.
#[test]
fn rotating_both_sides_of_a_product_changes_nothing() {
    let info = TensorInfo { dims: vec![12, 1], encoding: Encoding::Plain(Dtype::F32) };
    let source = Twelve(BTreeMap::from([("t".into(), info)]));
    let turned = Expr::tensor("t").rotated(Axis::Rows, 6, 3);
    let mut turn = vec![0.0; 144];
    Expr::Identity(12).rotated(Axis::Columns, 6, 3).read(&source, 0..12, &mut turn).unwrap();
    let mut w = vec![0.0; 12];
    turned.read(&source, 0..12, &mut w).unwrap();
    for (row, wanted) in turn.chunks(12).zip(0u8..) {
        let found: f32 = row.iter().zip(&w).map(|(a, b)| a * b).sum();
        assert!((found - f32::from(wanted)).abs() < 1e-5, "{found}, wanted {wanted}");
    }
}

#[test]
fn heads_that_do_not_divide_the_rows_are_refused_at_any_depth() {
    for heads in [4, 5, 12, 24, 1usize << 39] {
        assert!(with_weight("f32", &format!(r#"halves(tensor("t"), {heads})"#)).is_err(), "{heads}");
        assert!(with_weight("f32", &format!(r#"halves(halves(tensor("t"), {heads}), 3)"#)).is_err(), "{heads} inside");
    }
}
