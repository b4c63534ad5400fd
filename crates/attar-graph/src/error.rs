//! Errors of building, reading and running graphs.

/// The result of building, reading or running a graph.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a graph is invalid or cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor could not be read.
    #[error(transparent)]
    Tensor(#[from] attar_tensor::Error),
    /// candle failed.
    #[error(transparent)]
    Kernel(#[from] candle_core::Error),
    /// candle failed while a node was evaluated: a bug of ours, since facts are inferred first.
    #[error("evaluating `{node}` ({op})")]
    Candle {
        /// The node's output.
        node: String,
        /// The op's name.
        op: &'static str,
        /// What candle says.
        source: candle_core::Error,
    },
    /// Operands that an op cannot take.
    #[error("`{node}`: {op} wants {wanted}, found {found}")]
    Operands {
        /// The node's output.
        node: String,
        /// The op's name.
        op: &'static str,
        /// What it takes.
        wanted: &'static str,
        /// The facts of what it got.
        found: String,
    },
    /// A weight whose stored shape is not the graph's.
    #[error("`{weight}` should be {wanted:?} by the model's configuration; `{stored}` holds {found:?}")]
    Shape {
        /// Canonical name.
        weight: String,
        /// The expression over stored names.
        stored: String,
        /// By the graph.
        wanted: Vec<usize>,
        /// By the checkpoint.
        found: Vec<usize>,
    },
    /// Text that is not a graph.
    #[error("line {line}, column {column}: {problem}")]
    Text {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        problem: Problem,
    },
    /// A graph that breaks its own rules.
    #[error("invalid graph: {0}")]
    Invalid(Problem),
    /// An input of the graph that the caller did not give.
    #[error("the graph reads the input `{name}`, which was not given")]
    Input {
        /// The input.
        name: String,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} in a vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
}

/// What is wrong with a text or a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("found {found}, wanted {wanted}")]
    Syntax { found: String, wanted: &'static str },
    #[error("no value is named `{name}` here")]
    UnknownValue { name: String },
    #[error("no op is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownOp { name: String, nearest: Option<String> },
    #[error("no encoding is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownEncoding { name: String, nearest: Option<String> },
    #[error("`{op}` has {wanted} result(s), found {found} name(s)")]
    Results { op: &'static str, found: usize, wanted: usize },
    #[error("no fused kind is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKind { name: String, nearest: Option<String> },
    #[error("the body of a fused `{kind}` has {found}")]
    Body { kind: &'static str, found: &'static str },
    #[error("the last node of a body must have the name of the fused node, `{name}`; found `{found}`")]
    BodyName { name: String, found: String },
    #[error("{op} has no attribute `{name}`")]
    UnknownAttribute { op: &'static str, name: String },
    #[error("{op} needs the attribute `{name}`")]
    MissingAttribute { op: &'static str, name: &'static str },
    #[error("`{name}` is defined twice")]
    Twice { name: String },
    #[error("{0}")]
    Operands(String),
    #[error("`{name}` is used before it is defined")]
    Order { name: String },
    #[error("`{name}` is {found}, expected {wanted}")]
    Fact { name: String, found: String, wanted: String },
    #[error("the nodes of block `{block}` are not contiguous")]
    Scattered { block: String },
    #[error("`{name}` is a weight; only results of nodes can be returned")]
    ConstantOutput { name: String },
    #[error("the graph returns nothing")]
    NoOutput,
}
