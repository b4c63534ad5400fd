//! Property tests of dimensions: the canonical form is worth what was written, and prints and parses back.

use attar_graph::Dim;
use proptest::{prelude::*, test_runner::RngSeed};

/// A dimension as it may be written.
#[derive(Clone, Debug)]
enum Written {
    Number(usize),
    Symbol(&'static str),
    Sum(Box<Written>, Box<Written>),
    Product(Box<Written>, Box<Written>),
    Quotient(Box<Written>, usize),
    RoundedUp(Box<Written>, usize),
}

const SYMBOLS: [&str; 3] = ["batch", "past", "seq"];

fn written() -> impl Strategy<Value = Written> {
    let leaf =
        prop_oneof![(1..40usize).prop_map(Written::Number), prop::sample::select(SYMBOLS.as_slice()).prop_map(Written::Symbol),];
    leaf.prop_recursive(5, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Written::Sum(a.into(), b.into())),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Written::Product(a.into(), b.into())),
            (inner.clone(), 1..20usize).prop_map(|(a, by)| Written::Quotient(a.into(), by)),
            (inner, 1..20usize).prop_map(|(a, by)| Written::RoundedUp(a.into(), by)),
        ]
    })
}

impl Written {
    fn dim(&self) -> Option<Dim> {
        match self {
            Written::Number(n) => Some(Dim::Constant(*n)),
            Written::Symbol(name) => Some(Dim::symbol(name)),
            Written::Sum(a, b) => a.dim()?.add(&b.dim()?),
            Written::Product(a, b) => a.dim()?.times(&b.dim()?),
            Written::Quotient(a, by) => a.dim()?.divided(*by),
            Written::RoundedUp(a, by) => a.dim()?.rounded_up(*by),
        }
    }

    /// None, if it is too large for the test.
    fn value(&self, of: &dyn Fn(&str) -> usize) -> Option<usize> {
        let value = match self {
            Written::Number(n) => *n,
            Written::Symbol(name) => of(name),
            Written::Sum(a, b) => a.value(of)? + b.value(of)?,
            Written::Product(a, b) => a.value(of)? * b.value(of)?,
            Written::Quotient(a, by) => a.value(of)? / by,
            Written::RoundedUp(a, by) => a.value(of)?.next_multiple_of(*by),
        };
        (value < 1 << 30).then_some(value)
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 4_000, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..Default::default() }
}

#[test]
fn the_canonical_form_is_worth_what_was_written() {
    let formed = std::cell::Cell::new(0);
    proptest!(config(), |(written in written(), values in prop::array::uniform3(0..9usize))| {
        let of = |name: &str| values[SYMBOLS.iter().position(|symbol| *symbol == name).unwrap()];
        if let (Some(dim), Some(value)) = (written.dim(), written.value(&of)) {
            formed.set(formed.get() + 1);
            prop_assert_eq!(dim.bind(&|name| Some(of(name))), Some(value), "{}", dim);
        }
    });
    assert!(formed.get() > 2_000, "only {} dimensions are small enough", formed.get());
}

#[test]
fn a_dimension_prints_and_parses_back() {
    proptest!(config(), |(written in written())| {
        if let Some(dim) = written.dim().filter(|dim| *dim != Dim::Constant(0)) {
            let text = dim.to_string();
            prop_assert_eq!(Dim::parse(&text), Some(dim), "{}", text);
        }
    });
}

#[test]
fn equal_polynomials_are_one_dimension() {
    proptest!(config(), |(a in written(), b in written(), c in written(), n in 1..20usize)| {
        let (Some(a), Some(b), Some(c)) = (a.dim(), b.dim(), c.dim()) else { return Ok(()) };
        prop_assert_eq!(a.add(&b), b.add(&a));
        prop_assert_eq!(a.times(&b), b.times(&a));
        let distributed = || a.times(&b)?.add(&a.times(&c)?);
        if let (Some(product), Some(sum)) = (b.add(&c).and_then(|sum| a.times(&sum)), distributed()) {
            prop_assert_eq!(product, sum);
        }
        if let Some(multiple) = a.rounded_up(n) {
            prop_assert_eq!(multiple.divided(n), a.divided_up(n));
            prop_assert_eq!(multiple.rounded_up(n), Some(multiple));
        }
    });
}
