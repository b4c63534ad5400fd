//! What expressions rearrange and add, against the same by hand.

use std::{collections::BTreeMap, ops::Range};

use attar_graph::{Axis, Expr, Graph, Runs};
use attar_tensor::{Digest, Dtype, Encoding, QuantizedTensor, Result, Source, TensorInfo, pack};

use crate::random::Random;

const ROWS: usize = 12;
const COLUMNS: usize = 8;

/// A matrix `m` and a vector `v` in bf16, and the matrices `q` and `t` in codes.
struct Stored {
    tensors: BTreeMap<String, TensorInfo>,
    codes: BTreeMap<String, QuantizedTensor>,
}

impl Stored {
    fn new() -> Stored {
        let mut random = Random::new(21);
        let plain = |dims: &[usize]| TensorInfo { dims: dims.into(), encoding: Encoding::Plain(Dtype::BF16) };
        let mut tensors: BTreeMap<String, TensorInfo> =
            [("m".into(), plain(&[ROWS, COLUMNS])), ("v".into(), plain(&[COLUMNS]))].into();
        let mut codes = BTreeMap::new();
        for (name, scheme) in [("q", "int4/g4/asymmetric"), ("t", "int8/tensor")] {
            let scheme: attar_tensor::Scheme = scheme.parse().unwrap();
            let mut tensor = QuantizedTensor { dims: [ROWS, COLUMNS], ..QuantizedTensor::empty(scheme, COLUMNS) };
            let bits = scheme.grid.bits();
            for _ in 0..ROWS {
                let row: Vec<u8> = (0..COLUMNS).map(|_| random.below(1 << bits) as u8).collect();
                pack::pack_row(&row, bits, &mut tensor.codes);
            }
            let count = scheme.scale_count([ROWS, COLUMNS]);
            tensor.scales = (0..count).map(|_| scheme.scale.round(random.number()).unwrap()).collect();
            if !scheme.is_symmetric() {
                tensor.zeros = (0..count).map(|_| random.below(1 << bits) as u8).collect();
            }
            tensors.insert(name.into(), TensorInfo { dims: vec![ROWS, COLUMNS], encoding: Encoding::Quantized(scheme) });
            codes.insert(name.into(), tensor);
        }
        Stored { tensors, codes }
    }
}

impl Source for Stored {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(name, &rows)?;
        match self.codes.contains_key(name) {
            true => self.read_quantized(name, rows)?.decode(out),
            false => {
                let first = rows.start * COLUMNS;
                out.iter_mut().enumerate().for_each(|(at, x)| *x = (first + at) as f32);
            }
        }
        Ok(())
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        self.check(name, &rows)?;
        let all = self.codes.get(name).ok_or_else(|| self.unknown(name))?;
        let per_row = |count: usize| count / ROWS;
        let cut = |whole: usize| rows.start * per_row(whole)..rows.end * per_row(whole);
        let of_tensor = all.scales.len() == 1;
        let scales = if of_tensor { 0..1 } else { cut(all.scales.len()) };
        let zeros = if all.zeros.is_empty() { 0..0 } else { scales.clone() };
        Ok(QuantizedTensor {
            dims: [rows.len(), COLUMNS],
            codes: all.codes[cut(all.codes.len())].to_vec(),
            scales: all.scales[scales].to_vec(),
            zeros: all.zeros[zeros].to_vec(),
            ..QuantizedTensor::empty(all.scheme, COLUMNS)
        })
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        Ok(Digest::of(name.as_bytes()))
    }
}

fn whole(source: &Stored, expr: &Expr) -> Vec<f32> {
    let info = expr.info(source).unwrap();
    let mut out = vec![f32::NAN; info.elements()];
    expr.read(source, 0..info.matrix()[0], &mut out).unwrap();
    out
}

fn at(matrix: &[f32], row: usize, column: usize) -> f32 {
    matrix[row * COLUMNS + column]
}

fn some_rows() -> Runs {
    Runs::of([3, 4, 5, 0, 11, 11, 2])
}

fn some_columns() -> Runs {
    Runs::of([6, 1, 2, 3, 1])
}

#[test]
fn a_transposed_matrix_has_rows_for_columns() {
    let source = Stored::new();
    for name in ["m", "q"] {
        let (matrix, transposed) = (whole(&source, &Expr::tensor(name)), whole(&source, &Expr::tensor(name).transposed()));
        for (row, column) in (0..ROWS).flat_map(|row| (0..COLUMNS).map(move |column| (row, column))) {
            assert_eq!(transposed[column * ROWS + row], at(&matrix, row, column), "{name}");
        }
        assert_eq!(whole(&source, &Expr::tensor(name).transposed().transposed()), matrix);
    }
}

#[test]
fn selected_rows_and_columns_are_those_of_the_list() {
    let source = Stored::new();
    for name in ["m", "q", "t"] {
        let matrix = whole(&source, &Expr::tensor(name));
        let rows: Vec<f32> =
            some_rows().indices().flat_map(|row| (0..COLUMNS).map(move |c| (row, c))).map(|(r, c)| at(&matrix, r, c)).collect();
        assert_eq!(whole(&source, &Expr::tensor(name).selected(Axis::Rows, some_rows())), rows, "{name}");
        let columns: Vec<f32> =
            (0..ROWS).flat_map(|row| some_columns().indices().map(|c| at(&matrix, row, c)).collect::<Vec<_>>()).collect();
        assert_eq!(whole(&source, &Expr::tensor(name).selected(Axis::Columns, some_columns())), columns, "{name}");
    }
    let of_vector = Expr::tensor("v").selected(Axis::Columns, Runs::new(std::iter::once(2..4)));
    assert_eq!((of_vector.info(&source).unwrap().dims, whole(&source, &of_vector)), (vec![2], vec![2.0, 3.0]));
}

/// Pruning by rows keeps a quantized weight quantized.
#[test]
fn selected_rows_keep_their_codes() {
    let source = Stored::new();
    for name in ["q", "t"] {
        let expr = Expr::tensor(name).selected(Axis::Rows, some_rows());
        assert_eq!(expr.encoding(&source).unwrap(), source.tensors[name].encoding);
        let picked = expr.read_quantized(&source, 0..some_rows().len()).unwrap();
        let mut decoded = vec![f32::NAN; picked.dims[0] * picked.dims[1]];
        picked.decode(&mut decoded);
        assert_eq!((picked.dims, decoded), ([7, COLUMNS], whole(&source, &expr)));
        for (start, end) in (0..7).flat_map(|start| (start..=7).map(move |end| (start, end))) {
            let part = expr.read_quantized(&source, start..end).unwrap();
            assert_eq!(part.codes, picked.codes[start * picked.codes.len() / 7..end * picked.codes.len() / 7]);
        }
        let columns = Expr::tensor(name).selected(Axis::Columns, some_columns());
        assert_eq!(columns.encoding(&source).unwrap(), Encoding::Plain(Dtype::F32), "groups do not survive a choice of columns");
        assert!(columns.read_quantized(&source, 0..1).is_err());
    }
}

/// What is only rearranged keeps the format of its numbers; a sum is f32.
#[test]
fn encodings_follow_the_numbers() {
    let source = Stored::new();
    let m = || Expr::tensor("m");
    for rearranged in [m().transposed(), m().selected(Axis::Rows, some_rows()), m().selected(Axis::Columns, some_columns())] {
        assert_eq!(rearranged.encoding(&source).unwrap(), Encoding::Plain(Dtype::BF16), "{rearranged}");
    }
    let gain = Expr::tensor("v").plus(Expr::Ones(COLUMNS));
    assert_eq!(gain.encoding(&source).unwrap(), Encoding::Plain(Dtype::F32));
    assert_eq!(whole(&source, &gain), (1..=COLUMNS).map(|n| n as f32).collect::<Vec<_>>());
}

#[test]
fn rows_do_not_depend_on_how_they_are_read() {
    let source = Stored::new();
    let m = || Expr::tensor("m");
    let all = [
        m().transposed(),
        m().transposed().selected(Axis::Rows, some_columns()),
        m().selected(Axis::Rows, some_rows()),
        m().selected(Axis::Rows, Runs::of([2, 11, 0])),
        m().selected(Axis::Rows, some_rows()).selected(Axis::Columns, some_columns()).transposed(),
        m().plus(m().scaled(Axis::Columns, Expr::tensor("v"))),
        m().plus(m()),
        Expr::Halves(Box::new(m().transposed()), 2),
    ];
    let mut digests = std::collections::BTreeSet::new();
    for expr in &all {
        let [rows, columns] = expr.info(&source).unwrap().matrix();
        let whole = whole(&source, expr);
        assert!(whole.iter().all(|x| x.is_finite()), "{expr}");
        for (start, end) in (0..rows).flat_map(|start| (start..=rows).map(move |end| (start, end))) {
            let mut out = vec![f32::NAN; (end - start) * columns];
            expr.read(&source, start..end, &mut out).unwrap();
            assert_eq!(out, whole[start * columns..end * columns], "{expr}: {start}..{end}");
        }
        assert!(digests.insert(expr.digest(&source).unwrap()), "{expr}");
    }
}

fn with_weight(dims: &str, expr: &str) -> attar_graph::Result<()> {
    let width = dims.split(", ").last().unwrap();
    let text = format!("graph g(x: [batch, {width}] f32) {{ y = linear x, weight(\"w\": [{dims}] bf16 = {expr}) return y }}");
    Graph::parse(&text)?.verify_weights(&Stored::new())
}

#[test]
fn what_is_not_there_cannot_be_selected() {
    with_weight("8, 12", r#"transpose(tensor("m"))"#).unwrap();
    with_weight("4, 8", r#"select_rows(tensor("m"), 11, 0..3)"#).unwrap();
    with_weight("12, 3", r#"select_columns(tensor("m"), 5..8)"#).unwrap();
    for (dims, expr) in [
        ("12, 8", r#"transpose(tensor("m"))"#),
        ("4, 8", r#"select_rows(tensor("m"), 9..13)"#),
        ("1, 8", r#"select_rows(tensor("m"), 12)"#),
        ("1, 8", r#"select_rows(tensor("m"), 1099511627775)"#),
        ("12, 3", r#"select_columns(tensor("m"), 6..9)"#),
        ("1, 8", r#"select_rows(tensor("v"), 0)"#),
        ("8, 1", r#"transpose(tensor("v"))"#),
        ("12, 8", r#"sum(tensor("m"), tensor("v"))"#),
    ] {
        assert!(with_weight(dims, expr).is_err(), "[{dims}] {expr}");
    }
}
