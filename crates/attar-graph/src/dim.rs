//! Dimensions: known numbers, or sums, products and quotients of symbols that are bound when a graph runs.
//!
//! A dimension is kept in one canonical form, a polynomial whose factors are symbols and quotients rounded down:
//! `seq*(past+2)` is `past*seq+seq*2`, and `seq` rounded up to a multiple of 16 is `(seq+15)/16*16`. So dimensions that are
//! the same polynomial compare equal, however they came about.
//!
//! ```
//! use attar_graph::Dim;
//! let padded = Dim::symbol("seq").rounded_up(16).unwrap();
//! assert_eq!(padded.to_string(), "(seq+15)/16*16");
//! assert_eq!(padded.bind(&|_| Some(17)), Some(32));
//! ```

use std::{collections::BTreeMap, fmt};

/// Symbols of a dimension, in all its terms: products of sums grow fast, and no shape needs many.
const SYMBOLS: usize = 128;

/// How deep parentheses may nest.
const DEPTH: u32 = 8;

/// Numbers below this may be written.
const LARGEST: usize = 1 << 40;

/// One dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// Known now.
    Constant(usize),
    /// Known when its symbols are bound.
    Symbolic(Polynomial),
}

/// A sum of products, at least one of which has a factor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Polynomial {
    /// Coefficients, at least 1, of sorted products. The constant is the coefficient of the empty product.
    terms: BTreeMap<Vec<Factor>, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Factor {
    Symbol(String),
    /// Rounded down; the divisor is at least 2 and shares no factor with all coefficients of symbols.
    Quotient(Polynomial, usize),
}

impl Dim {
    /// From text: names and numbers with `+`, `*`, `/` (rounding down) and parentheses.
    pub fn parse(text: &str) -> Option<Dim> {
        let mut parser = Parser { rest: text, depth: 0 };
        let dim = parser.sum()?;
        (parser.next().is_none() && dim != Dim::Constant(0)).then_some(dim)
    }

    /// One symbol.
    pub fn symbol(name: &str) -> Dim {
        Dim::Symbolic(Polynomial { terms: BTreeMap::from([(vec![Factor::Symbol(name.into())], 1)]) })
    }

    /// Its value, if it is known now.
    pub fn constant(&self) -> Option<usize> {
        match self {
            Dim::Constant(n) => Some(*n),
            Dim::Symbolic(_) => None,
        }
    }

    /// Its value where symbols stand for numbers; none, if a symbol has none or the value is too large.
    pub fn bind(&self, value: &dyn Fn(&str) -> Option<usize>) -> Option<usize> {
        match self {
            Dim::Constant(n) => Some(*n),
            Dim::Symbolic(sum) => sum.bind(value),
        }
    }

    /// Whether it is at least `other` whatever the symbols are. `false` may mean that it is not known.
    pub(crate) fn reaches(&self, other: &Dim) -> bool {
        let all = self.polynomial();
        other.polynomial().terms.iter().all(|(product, some)| all.terms.get(product).is_some_and(|all| all >= some))
    }

    /// `self + symbol`, for a symbolic dimension; a constant one stays.
    pub fn plus(&self, symbol: &str) -> Option<Dim> {
        match self {
            Dim::Constant(n) => Some(Dim::Constant(*n)),
            Dim::Symbolic(_) => self.add(&Dim::symbol(symbol)),
        }
    }

    /// The sum of two. As for the operations below, there is none where it has too many symbols or too large numbers.
    pub fn add(&self, other: &Dim) -> Option<Dim> {
        let mut sum = self.polynomial();
        other.polynomial().terms.into_iter().try_for_each(|(product, count)| sum.put(product, count))?;
        sum.simplified()
    }

    /// The product of two.
    pub fn times(&self, other: &Dim) -> Option<Dim> {
        let (a, b) = (self.polynomial(), other.polynomial());
        let mut sum = Polynomial::default();
        for ((a, count), (b, times)) in a.terms.iter().flat_map(|a| b.terms.iter().map(move |b| (a, b))) {
            let mut product: Vec<Factor> = a.iter().chain(b).cloned().collect();
            product.sort();
            sum.put(product, count.checked_mul(*times)?)?;
        }
        sum.simplified()
    }

    /// Its quotient by a number, rounded down.
    pub fn divided(&self, by: usize) -> Option<Dim> {
        if by == 0 {
            return None;
        }
        let (mut whole, mut rest) = (Polynomial::default(), Polynomial::default());
        for (product, count) in self.polynomial().terms {
            whole.put(product.clone(), count / by)?;
            rest.put(product, count % by)?;
        }
        whole.simplified()?.add(&rest.quotient(by)?)
    }

    /// Its quotient by a number, rounded up.
    pub fn divided_up(&self, by: usize) -> Option<Dim> {
        self.add(&Dim::Constant(by.checked_sub(1)?))?.divided(by)
    }

    /// The next multiple of a number.
    pub fn rounded_up(&self, multiple: usize) -> Option<Dim> {
        self.divided_up(multiple)?.times(&Dim::Constant(multiple))
    }

    fn polynomial(&self) -> Polynomial {
        match self {
            Dim::Constant(0) => Polynomial::default(),
            Dim::Constant(n) => Polynomial { terms: BTreeMap::from([(Vec::new(), *n)]) },
            Dim::Symbolic(sum) => sum.clone(),
        }
    }
}

impl Polynomial {
    /// Adds `count` times a sorted product.
    fn put(&mut self, product: Vec<Factor>, count: usize) -> Option<()> {
        if count > 0 {
            let sum = self.terms.entry(product).or_insert(0);
            *sum = sum.checked_add(count)?;
        }
        (self.terms.len() <= SYMBOLS).then_some(())
    }

    fn simplified(self) -> Option<Dim> {
        match self.terms.keys().all(Vec::is_empty) {
            true => Some(Dim::Constant(self.constant())),
            false => (self.symbols() <= SYMBOLS).then_some(Dim::Symbolic(self)),
        }
    }

    fn symbols(&self) -> usize {
        let of = |factor: &Factor| match factor {
            Factor::Symbol(_) => 1,
            Factor::Quotient(sum, _) => sum.symbols(),
        };
        self.terms.keys().flatten().map(of).sum()
    }

    fn constant(&self) -> usize {
        self.terms.get(&Vec::new()).copied().unwrap_or(0)
    }

    /// `self / by` rounded down, where every coefficient is below `by`.
    fn quotient(mut self, by: usize) -> Option<Dim> {
        let constant = self.terms.remove(&Vec::new()).unwrap_or(0);
        if self.terms.is_empty() {
            return Some(Dim::Constant(0));
        }
        // floor((g x + c) / (g n)) = floor((x + floor(c / g)) / n)
        let shared = self.terms.values().fold(by, |shared, count| greatest_common_divisor(shared, *count));
        self.terms.values_mut().for_each(|count| *count /= shared);
        let (by, constant) = (by / shared, constant / shared);
        // floor((floor(x / n) + c) / m) = floor((x + c n) / (n m))
        if let [(product, 1)] = self.terms.iter().collect::<Vec<_>>()[..]
            && let [Factor::Quotient(inner, divisor)] = product.as_slice()
        {
            let more = Dim::Constant(constant.checked_mul(*divisor)?);
            return Dim::Symbolic(inner.clone()).add(&more)?.divided(divisor.checked_mul(by)?);
        }
        self.put(Vec::new(), constant)?;
        match by {
            1 => self.simplified(),
            _ => Polynomial { terms: BTreeMap::from([(vec![Factor::Quotient(self, by)], 1)]) }.simplified(),
        }
    }

    fn bind(&self, value: &dyn Fn(&str) -> Option<usize>) -> Option<usize> {
        let product = |(factors, count): (&Vec<Factor>, &usize)| {
            factors.iter().try_fold(*count, |product, factor| product.checked_mul(factor.bind(value)?))
        };
        self.terms.iter().try_fold(0usize, |sum, term| sum.checked_add(product(term)?))
    }
}

impl Factor {
    fn bind(&self, value: &dyn Fn(&str) -> Option<usize>) -> Option<usize> {
        match self {
            Factor::Symbol(name) => value(name),
            Factor::Quotient(sum, by) => Some(sum.bind(value)? / by),
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Constant(n) => n.fmt(f),
            Dim::Symbolic(sum) => sum.fmt(f),
        }
    }
}

impl fmt::Display for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let products = self.terms.iter().filter(|(product, _)| !product.is_empty());
        let mut parts: Vec<String> = products.map(|(product, count)| written(product, *count)).collect();
        parts.extend(Some(self.constant()).filter(|n| *n > 0).map(|n| n.to_string()));
        f.write_str(&parts.join("+"))
    }
}

/// `batch*(seq/2)*3`. A quotient that comes first needs no parentheses.
fn written(product: &[Factor], count: usize) -> String {
    let factor = |(at, factor): (usize, &Factor)| match factor {
        Factor::Symbol(name) => name.clone(),
        Factor::Quotient(sum, by) => {
            let sum = if sum.terms.len() > 1 { format!("({sum})") } else { sum.to_string() };
            if at == 0 { format!("{sum}/{by}") } else { format!("({sum}/{by})") }
        }
    };
    let mut factors: Vec<String> = product.iter().enumerate().map(factor).collect();
    factors.extend((count > 1).then(|| count.to_string()));
    factors.join("*")
}

struct Parser<'t> {
    rest: &'t str,
    depth: u32,
}

impl<'t> Parser<'t> {
    /// The next sign, if there is one.
    fn next(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start_matches(' ');
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.next() == Some(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn sum(&mut self) -> Option<Dim> {
        let mut sum = self.product()?;
        while self.take('+') {
            sum = sum.add(&self.product()?)?;
        }
        Some(sum)
    }

    fn product(&mut self) -> Option<Dim> {
        let mut product = self.factor()?;
        loop {
            if self.take('*') {
                product = product.times(&self.factor()?)?;
            } else if self.take('/') {
                product = product.divided(self.factor()?.constant()?)?;
            } else {
                return Some(product);
            }
        }
    }

    fn factor(&mut self) -> Option<Dim> {
        if self.take('(') {
            self.depth += 1;
            let sum = if self.depth > DEPTH { None } else { self.sum() }?;
            self.depth -= 1;
            return self.take(')').then_some(sum);
        }
        let first = self.next()?;
        let word = self.word();
        match first.is_ascii_digit() {
            true => word.parse().ok().filter(|n| (1..LARGEST).contains(n)).map(Dim::Constant),
            false => (first.is_ascii_alphabetic() || first == '_').then(|| Dim::symbol(word)),
        }
    }

    fn word(&mut self) -> &'t str {
        let inside = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let (word, rest) = self.rest.split_at(self.rest.find(|c| !inside(c)).unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(text: &str) -> Dim {
        Dim::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn one_dimension_has_one_form() {
        for (text, form) in [
            ("seq+past", "past+seq"),
            ("seq+seq", "seq*2"),
            ("(seq + 1)*2", "seq*2+2"),
            ("seq*(past+seq)", "past*seq+seq*seq"),
            ("(seq*4+6)/2", "seq*2+3"),
            ("(seq*4+7)/6", "seq*2/3+1"),
            ("seq/2/3", "seq/6"),
            ("(seq/2+1)/3", "(seq+2)/6"),
            ("(seq+15)/16*16", "(seq+15)/16*16"),
            ("16*batch*((15+seq)/16)", "batch*((seq+15)/16)*16"),
            ("7/2*seq", "seq*3"),
            ("seq*6/4", "seq+seq/2"),
            ("seq*6/4+seq/1", "seq*2+seq/2"),
        ] {
            assert_eq!(dim(text).to_string(), form, "{text}");
            assert_eq!(dim(form), dim(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_dimension_is_refused() {
        let nested = format!("{}seq{}", "(".repeat(100_000), ")".repeat(100_000));
        let many = (0..200).map(|i| format!("a{i}")).collect::<Vec<_>>().join("+");
        let grows = (0..40).map(|i| format!("(a{i}+b{i})")).collect::<Vec<_>>().join("*");
        let deep = (0..40).fold("seq".to_owned(), |text, i| format!("({text}+a{i})/3"));
        for text in
            ["", "+", "seq+", "seq/past", "seq/0", "0", "1/2", "(seq", "seq)", "seq past", "2seq*", "a**b", "1099511627776"]
                .into_iter()
                .chain([nested.as_str(), &many, &grows, &deep, "1099511627775*1099511627775"])
        {
            assert!(Dim::parse(text).is_none(), "{}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn a_dimension_reaches_what_it_contains() {
        for (all, some, reaches) in [
            ("past+seq", "seq", true),
            ("seq", "past+seq", false),
            ("seq*2", "seq", true),
            ("seq+2", "2", true),
            ("5", "4", true),
            ("4", "seq", false),
        ] {
            assert_eq!(dim(all).reaches(&dim(some)), reaches, "{all} {some}");
        }
    }
}
