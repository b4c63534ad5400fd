//! Text form of a graph: prints and parses back.
//!
//! ```text
//! ; a comment
//! graph NAME(x: [batch, seq, 64] f32, …) {
//!   block NAME {
//!     value = op x, weight("canonical.name": [176, 64] int4/g64 = tensor("stored")) {attribute = 1, other = "text"}
//!   }
//!   return value
//! }
//! ```
//!
//! A node with several results names them all: `q, k, v = split x {widths = [64, 32, 32]}`.
//!
//! A fused node has a kind and, after its operands, a body: the names of the operands there, and nodes, the last of which
//! has the name of the fused node.
//!
//! ```text
//! h = fused gated x, weight("gate": [176, 64] int4/g64), weight("up": [176, 64] int4/g64) (x, gate, up) {
//!   g = linear x, gate
//!   u = linear x, up
//!   h = swiglu g, u
//! }
//! ```
//!
//! A weight that is stored under its canonical name needs no `= …`. Nodes outside blocks come before the blocks. Numbers print
//! in their shortest exact form; strings are escaped as in Rust.

use std::{collections::BTreeMap, fmt, ops::Range, str::Chars};

use attar_tensor::{Dtype, nearest};

use crate::{
    Axis, Dim, Error, Expr, Fact, Graph, Node, OPS, Op, Origin, Result, Runs, ValueId,
    error::Problem,
    op::{Attribute, Attributes, Fused},
};

/// The operations of weight expressions.
const EXPRESSIONS: [&str; 15] = [
    "tensor",
    "halves",
    "ones",
    "identity",
    "scale_rows",
    "scale_columns",
    "divide_rows",
    "divide_columns",
    "rotate_rows",
    "rotate_columns",
    "round",
    "sum",
    "transpose",
    "select_rows",
    "select_columns",
];

/// The name of the op that has a body, and of every body.
pub(crate) const FUSED: &str = "fused";

/// How deep expressions may nest.
const DEPTH: u32 = 16;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs: Vec<String> = self.inputs().iter().map(|id| format!("{}: {}", self.get(*id).name, self.fact(*id))).collect();
        writeln!(f, "graph {}({}) {{", self.name(), inputs.join(", "))?;
        for block in self.blocks() {
            let name = self.block_name(block);
            let indent = if name.is_empty() { "  " } else { "    " };
            if !name.is_empty() {
                writeln!(f, "  block {name} {{")?;
            }
            for node in self.nodes_of(block) {
                self.write_node(f, node, indent)?;
            }
            if !name.is_empty() {
                writeln!(f, "  }}")?;
            }
        }
        let outputs: Vec<&str> = self.outputs().iter().map(|id| self.get(*id).name.as_str()).collect();
        writeln!(f, "  return {}", outputs.join(", "))?;
        writeln!(f, "}}")
    }
}

impl Graph {
    fn write_node(&self, f: &mut fmt::Formatter<'_>, node: &Node, indent: &str) -> fmt::Result {
        let operands: Vec<String> = node.inputs.iter().map(|id| self.operand(*id)).collect();
        let names: Vec<&str> = node.outputs.iter().map(|id| self.get(*id).name.as_str()).collect();
        let (name, def, operands) = (names.join(", "), node.op.def(), operands.join(", "));
        if let Op::Fused(fused) = &node.op {
            let body = fused.body();
            let called: Vec<&str> = body.inputs().iter().map(|id| body.get(*id).name.as_str()).collect();
            writeln!(f, "{indent}{name} = {} {} {operands} ({}) {{", def.name, fused.kind().name(), called.join(", "))?;
            body.nodes().iter().try_for_each(|node| body.write_node(f, node, &format!("{indent}  ")))?;
            return writeln!(f, "{indent}}}");
        }
        write!(f, "{indent}{name} = {} {operands}", def.name)?;
        let attributes: Vec<String> =
            (def.attributes)(&node.op).iter().map(|(name, value)| format!("{name} = {value}")).collect();
        match attributes.is_empty() {
            true => writeln!(f),
            false => writeln!(f, " {{{}}}", attributes.join(", ")),
        }
    }

    fn operand(&self, id: ValueId) -> String {
        let value = self.get(id);
        match &value.origin {
            Origin::Weight(Expr::Tensor(stored)) if *stored == value.name => format!("weight({:?}: {})", value.name, value.fact),
            Origin::Weight(expr) => format!("weight({:?}: {} = {expr})", value.name, value.fact),
            _ => value.name.clone(),
        }
    }

    /// From text form. The result is verified.
    pub fn parse(text: &str) -> Result<Graph> {
        let mut parser = Parser { text, at: 0, token: 0, in_body: false };
        let graph = parser.graph().map_err(|failure| parser.locate(failure))?;
        graph.verify()?;
        Ok(graph)
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::Number(n) => n.fmt(f),
            Attribute::Text(text) => write!(f, "{text:?}"),
            Attribute::Flag(flag) => flag.fmt(f),
            Attribute::Counts(counts) => write!(f, "{counts:?}"),
        }
    }
}

/// A problem here, or an error that knows where it is.
enum Failure {
    Here(Problem),
    There(Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        Failure::Here(problem)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::There(error)
    }
}

type Parsed<T> = std::result::Result<T, Failure>;

struct Parser<'t> {
    text: &'t str,
    /// Where the last token ends.
    at: usize,
    /// Where the last token starts.
    token: usize,
    /// Whether nodes are those of a body.
    in_body: bool,
}

impl<'t> Parser<'t> {
    fn locate(&self, failure: Failure) -> Error {
        let problem = match failure {
            Failure::Here(problem) => problem,
            Failure::There(Error::Operands { op, wanted, found, .. }) => {
                Problem::Operands(format!("{op} wants {wanted}, found {found}"))
            }
            Failure::There(Error::Invalid(problem)) => problem,
            Failure::There(other) => Problem::Operands(other.to_string()),
        };
        let before = &self.text[..self.token];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Error::Text { line, column, problem }
    }

    /// The next word, string or sign; empty at the end.
    fn next(&mut self) -> &'t str {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                break;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
        self.token = self.at;
        let rest = &self.text[self.at..];
        let word = |c: char| c.is_ascii_alphanumeric() || "_./+-".contains(c);
        let length = match rest.chars().next() {
            None => 0,
            Some('"') => string_length(rest),
            Some(c) if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            Some(c) => c.len_utf8(),
        };
        self.at += length;
        &rest[..length]
    }

    fn peek(&mut self) -> &'t str {
        let (at, token) = (self.at, self.token);
        let next = self.next();
        (self.at, self.token) = (at, token);
        next
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.peek() == wanted;
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, wanted: &'static str) -> Parsed<()> {
        match self.next() {
            found if found == wanted => Ok(()),
            found => Err(syntax(found, wanted)),
        }
    }

    fn word(&mut self, wanted: &'static str) -> Parsed<&'t str> {
        match self.next() {
            found if found.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => Ok(found),
            found => Err(syntax(found, wanted)),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        let found = self.next();
        let inner = found.strip_prefix('"').and_then(|s| s.strip_suffix('"')).filter(|_| string_length(found) == found.len());
        inner.and_then(unescaped).ok_or_else(|| syntax(found, "a string"))
    }

    fn graph(&mut self) -> Parsed<Graph> {
        self.expect("graph")?;
        let mut graph = Graph::new(self.word("the graph's name")?);
        self.expect("(")?;
        while !self.take(")") {
            let name = self.word("an input's name")?;
            self.expect(":")?;
            let fact = self.fact()?;
            graph.input(name, fact)?;
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        self.expect("{")?;
        loop {
            match self.word("a value, `block` or `return`")? {
                "block" => {
                    let name = self.word("the block's name")?;
                    if graph.blocks().any(|block| graph.block_name(block) == name) {
                        return Err(Problem::Scattered { block: name.into() }.into());
                    }
                    graph.block(name);
                    self.expect("{")?;
                    while !self.take("}") {
                        let name = self.word("a value's name")?;
                        self.node(&mut graph, name)?;
                    }
                }
                "return" => break,
                name if graph.blocks().any(|block| !graph.block_name(block).is_empty()) => {
                    return Err(syntax(name, "`block` or `return`, since blocks have begun"));
                }
                name => self.node(&mut graph, name)?,
            }
        }
        loop {
            let name = self.word("a value's name")?;
            let id = self.lookup(&graph, name)?;
            if matches!(graph.get(id).origin, Origin::Weight(_)) {
                return Err(Problem::ConstantOutput { name: name.into() }.into());
            }
            graph.output(id);
            if !self.take(",") {
                break;
            }
        }
        self.expect("}")?;
        match self.next() {
            "" => Ok(graph),
            found => Err(syntax(found, "the end")),
        }
    }

    fn node(&mut self, graph: &mut Graph, name: &str) -> Parsed<()> {
        let mut names = vec![name];
        while self.take(",") {
            names.push(self.word("a value's name")?);
        }
        self.expect("=")?;
        let op_name = self.word("an op")?;
        let def = OPS.iter().find(|def| def.name == op_name).ok_or_else(|| Problem::UnknownOp {
            name: op_name.into(),
            nearest: nearest(op_name, OPS.iter().map(|def| def.name)).map(Into::into),
        })?;
        let op_at = self.token;
        if def.name == FUSED && names.len() == 1 {
            return self.fused(graph, name);
        }
        let operands = self.operands(graph)?;
        let mut attributes = Attributes::new(def.name, self.attributes()?);
        self.token = op_at;
        let op = (def.parse)(&mut attributes)?;
        attributes.finish()?;
        graph.node_of(&names, op, &operands)?;
        Ok(())
    }

    fn operands(&mut self, graph: &mut Graph) -> Parsed<Vec<ValueId>> {
        let mut operands = Vec::new();
        loop {
            operands.push(self.operand_of(graph)?);
            if !self.take(",") {
                return Ok(operands);
            }
        }
    }

    /// What follows the word `fused`: kind, operands and body.
    fn fused(&mut self, graph: &mut Graph, name: &str) -> Parsed<()> {
        let op_at = self.token;
        if std::mem::replace(&mut self.in_body, true) {
            return Err(syntax(FUSED, "another op, in the body of a fused one"));
        }
        let kind = self.word("what is fused")?.parse()?;
        let operands = self.operands(graph)?;
        let mut body = self.parameters(graph, &operands)?;
        self.expect("{")?;
        let mut last = None;
        while !self.take("}") {
            let name = self.word("a value's name")?;
            self.node(&mut body, name)?;
            last = body.find(name);
        }
        self.in_body = false;
        self.token = op_at;
        last.into_iter().for_each(|last| body.output(last));
        graph.node(name, Op::Fused(Fused::new(kind, body)?), &operands)?;
        Ok(())
    }

    /// A body with its inputs.
    fn parameters(&mut self, graph: &Graph, operands: &[ValueId]) -> Parsed<Graph> {
        let mut body = Graph::new(FUSED);
        self.expect("(")?;
        for (at, operand) in operands.iter().enumerate() {
            if at > 0 {
                self.expect(",")?;
            }
            body.input(self.word("what the operand is called in the body")?, graph.fact(*operand).clone())?;
        }
        self.expect(")")?;
        Ok(body)
    }

    fn operand_of(&mut self, graph: &mut Graph) -> Parsed<ValueId> {
        match self.word("a value")? {
            "weight" => self.weight(graph),
            name => self.lookup(graph, name),
        }
    }

    fn lookup(&self, graph: &Graph, name: &str) -> Parsed<ValueId> {
        Ok(graph.find(name).ok_or_else(|| Problem::UnknownValue { name: name.into() })?)
    }

    fn weight(&mut self, graph: &mut Graph) -> Parsed<ValueId> {
        self.expect("(")?;
        let name = self.string()?;
        self.expect(":")?;
        let fact = self.fact()?;
        let expr = if self.take("=") { self.expr(DEPTH)? } else { Expr::tensor(&name) };
        self.expect(")")?;
        if fact.constant_dims().is_none() {
            return Err(Problem::Syntax { found: fact.to_string(), wanted: "constant dimensions" }.into());
        }
        match graph.find(&name) {
            Some(id) if graph.get(id).fact == fact && graph.get(id).origin == Origin::Weight(expr.clone()) => Ok(id),
            Some(_) => Err(Problem::Twice { name }.into()),
            None => Ok(graph.weight(&name, fact, expr)?),
        }
    }

    /// `depth` bounds the nesting.
    fn expr(&mut self, depth: u32) -> Parsed<Expr> {
        let word = self.next();
        if !EXPRESSIONS.contains(&word) || (depth == 0 && word != "tensor") {
            return Err(syntax(word, "a weight expression, such as `tensor` or `halves`, nested at most 16 deep"));
        }
        self.expect("(")?;
        let expr = self.expr_parts(word, depth.saturating_sub(1))?;
        self.expect(")")?;
        Ok(expr)
    }

    /// The arguments of `word`, one of [`EXPRESSIONS`].
    fn expr_parts(&mut self, word: &str, depth: u32) -> Parsed<Expr> {
        match word {
            "tensor" => return Ok(Expr::tensor(self.string()?)),
            "ones" => return Ok(Expr::Ones(self.count()?)),
            "identity" => return Ok(Expr::Identity(self.count()?)),
            _ => {}
        }
        let of = self.expr(depth)?;
        if word == "transpose" {
            return Ok(of.transposed());
        }
        self.expect(",")?;
        let axis = if word.ends_with("_rows") { Axis::Rows } else { Axis::Columns };
        Ok(match word {
            "halves" => Expr::Halves(Box::new(of), self.count()?),
            "scale_rows" | "scale_columns" => of.scaled(axis, self.expr(depth)?),
            "divide_rows" | "divide_columns" => of.divided(axis, self.expr(depth)?),
            "sum" => of.plus(self.expr(depth)?),
            "select_rows" | "select_columns" => of.selected(axis, self.runs()?),
            "round" => {
                let found = self.next();
                let float = found.parse::<Dtype>().ok().filter(|dtype| dtype.is_float());
                Expr::Round(Box::new(of), float.ok_or_else(|| syntax(found, "a floating-point format"))?)
            }
            _ => {
                let size = self.count()?;
                self.expect(",")?;
                let found = self.next();
                let seed = found.parse().map_err(|_| syntax(found, "a seed: a whole number of at least 0"))?;
                of.rotated(axis, size, seed)
            }
        })
    }

    /// `0..64, 128`, up to a parenthesis.
    fn runs(&mut self) -> Parsed<Runs> {
        let mut runs = Vec::new();
        loop {
            let found = self.next();
            runs.push(run(found).ok_or_else(|| syntax(found, "an index, or a range such as `0..64`"))?);
            if !self.take(",") {
                return Ok(Runs::new(runs));
            }
        }
    }

    fn count(&mut self) -> Parsed<usize> {
        let found = self.next();
        found.parse().ok().filter(|n| (1..1 << 40).contains(n)).ok_or_else(|| syntax(found, "a whole number of at least 1"))
    }

    fn fact(&mut self) -> Parsed<Fact> {
        self.expect("[")?;
        let mut dims = Vec::new();
        while !self.take("]") {
            dims.push(self.dimension()?);
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        let word = self.word("an encoding")?;
        let encoding = word.parse().map_err(|error| match error {
            attar_tensor::Error::UnknownName { nearest, .. } => Problem::UnknownEncoding { name: word.into(), nearest },
            other => Problem::Operands(other.to_string()),
        })?;
        Ok(Fact { dims, encoding })
    }

    /// Up to a comma or the end of the shape.
    fn dimension(&mut self) -> Parsed<Dim> {
        let (start, mut open) = (self.at, 0usize);
        loop {
            match self.peek() {
                "(" => open += 1,
                ")" if open > 0 => open -= 1,
                "*" => {}
                word if word.starts_with(|c: char| c.is_ascii_alphanumeric() || "_+/".contains(c)) => {}
                _ => break,
            }
            self.next();
        }
        let wanted = "a dimension, such as `64`, `seq`, `past+seq` or `(seq+15)/16*16`";
        let text = self.text[start..self.at].trim();
        if text.is_empty() {
            return Err(syntax(self.next(), wanted));
        }
        if text.chars().all(|c| c.is_ascii_digit()) {
            self.at = start;
            return self.count().map(Dim::Constant);
        }
        Dim::parse(text).ok_or_else(|| syntax(text, wanted))
    }

    fn attributes(&mut self) -> Parsed<BTreeMap<String, Attribute>> {
        let mut all = BTreeMap::new();
        if !self.take("{") {
            return Ok(all);
        }
        while !self.take("}") {
            let name = self.word("an attribute")?;
            self.expect("=")?;
            let value = self.attribute()?;
            if all.insert(name.into(), value).is_some() {
                return Err(Problem::Twice { name: name.into() }.into());
            }
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(all)
    }
}

impl Parser<'_> {
    fn attribute(&mut self) -> Parsed<Attribute> {
        if self.peek().starts_with('"') {
            return Ok(Attribute::Text(self.string()?));
        }
        if self.take("[") {
            let mut counts = vec![self.count()?];
            while self.take(",") {
                counts.push(self.count()?);
            }
            self.expect("]")?;
            return Ok(Attribute::Counts(counts));
        }
        Ok(match self.next() {
            "true" => Attribute::Flag(true),
            "false" => Attribute::Flag(false),
            found => {
                Attribute::Number(found.parse().map_err(|_| syntax(found, "a number, a string, a list, `true` or `false`"))?)
            }
        })
    }
}

/// `64`, or `0..64`.
fn run(text: &str) -> Option<Range<usize>> {
    let index = |text: &str| text.parse::<usize>().ok().filter(|n| *n < 1 << 40);
    match text.split_once("..") {
        Some((start, end)) => Some(index(start)?..index(end)?).filter(|run| !run.is_empty()),
        None => index(text).map(|index| index..index + 1),
    }
}

/// Bytes of the string that `text` starts with, both quotes included; all of it, if the second is missing.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

/// The contents of a string, between its quotes.
fn unescaped(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let mut all = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        all.push(if c == '\\' { escape(&mut chars)? } else { c });
    }
    Some(all)
}

/// The character that an escape means; `chars` follow its backslash.
fn escape(chars: &mut Chars<'_>) -> Option<char> {
    match chars.next()? {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        '0' => Some('\0'),
        'u' => {
            let digits = chars.as_str().strip_prefix('{')?.split_once('}')?.0;
            *chars = chars.as_str()[digits.len() + 2..].chars();
            u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)
        }
        c @ ('"' | '\\' | '\'') => Some(c),
        _ => None,
    }
}

fn syntax(found: &str, wanted: &'static str) -> Failure {
    let found = found.lines().next().map_or("the end".into(), |line| format!("`{line}`"));
    Failure::Here(Problem::Syntax { found, wanted })
}
