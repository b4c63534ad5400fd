//! Why weights cannot be quantized as asked.

use std::ops::Range;

use attar_tensor::{Dtype, Granularity, Scheme};

use crate::{Lost, QUANTIZERS};

/// The result of choosing or quantizing weights.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, and with which setting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight could not be read or written.
    #[error(transparent)]
    Tensor(#[from] attar_tensor::Error),
    /// A weight expression could not be evaluated.
    #[error(transparent)]
    Graph(#[from] attar_graph::Error),
    /// A pattern that names no weight.
    #[error("`{pattern}` matches no weight{}", if *within_selection { " among those selected" } else { "" })]
    NoMatch {
        /// The setting it stands in: `select[0]`.
        key: String,
        /// The pattern.
        pattern: String,
        /// Whether only selected weights were looked at.
        within_selection: bool,
        /// Names of weights that it could have meant.
        nearest: Vec<String>,
    },
    /// A scheme that does not fit a weight.
    #[error("`{weight}`{} cannot be {scheme}", and_others(*others))]
    DoesNotFit {
        /// The setting to change: `group`.
        key: String,
        /// Canonical name.
        weight: String,
        /// How many more weights it does not fit.
        others: usize,
        /// What was asked for.
        scheme: Scheme,
        /// Why not.
        source: attar_tensor::Error,
    },
    /// A scale that its format cannot hold.
    #[error("cannot scale rows {rows:?}, columns {columns:?}, of `{weight}`")]
    Scale {
        /// As it is stored.
        weight: String,
        /// What shares the scale.
        rows: Range<usize>,
        /// What shares the scale.
        columns: Range<usize>,
        /// Why not.
        source: attar_tensor::Error,
    },
    /// Rows or groups of weights of which nothing is left.
    #[error("{lost} of `{weight}`: the weights {became} as {scheme}{}", and_more(*others), lost = first, became = first.became)]
    Lost {
        /// Canonical name.
        weight: String,
        /// How it is stored.
        scheme: Scheme,
        /// The first lost row or group.
        first: Lost,
        /// How many more there are.
        others: usize,
    },
    /// Codes are decided once.
    #[error("`{weight}` is already quantized to {scheme}")]
    AlreadyQuantized {
        /// Canonical name.
        weight: String,
        /// How.
        scheme: Scheme,
    },
    /// Neither a format for all weights nor a budget; or, under a budget, a part of a format.
    #[error("{}", if key == "grid" { "there is neither a `grid` nor a budget" } else { "a part of a format says nothing without its `grid`" })]
    NoGrid {
        /// The setting it is about.
        key: String,
    },
    /// A budget with nothing to choose from.
    #[error("`choices` is empty")]
    NoChoices,
    /// A budget of coded bits for an algorithm that does not weigh them.
    #[error("`{algorithm}` rounds to the nearest code, whatever its bits cost")]
    NoRate {
        /// Its name.
        algorithm: &'static str,
    },
    /// A budget that the smallest choices exceed.
    #[error("the smallest choices take {least}, and the budget is {budget}")]
    BudgetTooSmall {
        /// The setting: `bits`.
        key: &'static str,
        /// As asked for: `bits = 2`.
        budget: String,
        /// What can be met, as a setting.
        least: String,
    },
    /// A model that cannot be run on calibration text.
    #[error(transparent)]
    Model(#[from] attar_model::Error),
    /// A setting of the calibration that cannot be.
    #[error("`{key} = {found}` cannot be; {wanted}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: usize,
        /// What could be.
        wanted: String,
    },
    /// Not enough text to see activations on, or to train on.
    #[error("`{}` has {tokens} tokens, and the {what} wants {wanted}", path.display())]
    TextTooShort {
        /// The text.
        path: std::path::PathBuf,
        /// What for.
        what: &'static str,
        /// What it has.
        tokens: usize,
        /// What is wanted.
        wanted: usize,
    },
    /// A line of a training text that cannot be used.
    #[error("`{}`, line {line}: {problem}", path.display())]
    Line {
        /// The text.
        path: std::path::PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Activations that are not finite.
    #[error("block `{block}`: `{value}` is not finite on the calibration text")]
    Activations {
        /// The block that makes or reads it.
        block: String,
        /// The value in the graph.
        value: String,
    },
    /// A loss that is not finite.
    #[error("block `{block}`: the loss is not finite on the calibration text")]
    Loss {
        /// The block whose weights would learn from it.
        block: String,
    },
    /// Training that went astray.
    #[error("step {step}: the loss is not finite any more, since block `{block}`")]
    Diverged {
        /// From 1.
        step: usize,
        /// The first block that makes numbers which are not finite.
        block: String,
    },
    /// Settings that exclude each other.
    #[error("`{key}` does not go with `{other}`")]
    Contradiction {
        /// The setting that should not be there.
        key: &'static str,
        /// The one that it does not go with, as written.
        other: String,
        /// What to do.
        hint: &'static str,
    },
    /// A percentile that is none.
    #[error("`percentile = {found}` cannot be; more than 50 and at most 100 percent are within the range")]
    Percentile {
        /// As given.
        found: f64,
    },
    /// Activations become integers once.
    #[error("`{reader}` reads `{value}`, which is in integers already")]
    AlreadyIntegers {
        /// The setting that selects it.
        key: &'static str,
        /// The weight or cache that reads it.
        reader: String,
        /// The value.
        value: String,
    },
    /// A graph without a cache.
    #[error("the model has no KV cache")]
    NoCache,
    /// Nothing is selected.
    #[error("no linear layer is selected, and the KV cache is left as it is")]
    NoActivations,
    /// Second moments that no damping made positive definite.
    #[error("the second moments of {inputs} inputs are not positive definite, even damped by {damping} of their mean")]
    NotPositiveDefinite {
        /// How many.
        inputs: usize,
        /// The largest share that was tried.
        damping: f64,
    },
    /// A weight that was to learn and that nothing reaches.
    #[error("no gradient reaches `{weight}`")]
    NoGradient {
        /// Canonical name.
        weight: String,
    },
    /// A stored state of what learns that lacks a part.
    #[error("the stored state of training has no `{part}`")]
    State {
        /// Its name.
        part: String,
    },
    /// A graph that a transformation does not know how to change.
    #[error("cannot transform the graph: `{value}` {problem}")]
    Structure {
        /// The value in the graph.
        value: String,
        /// What is done with it.
        problem: &'static str,
    },
    /// A residual stream of which no channel can leave.
    #[error("channels of the residual stream cannot leave: `{value}` {problem}")]
    NoChannels {
        /// The value in the graph.
        value: String,
        /// What is done with it.
        problem: &'static str,
    },
    /// A transformation of a weight that is codes already.
    #[error("`{weight}` is already quantized to {scheme}, and quantized weights cannot be transformed")]
    CodesStay {
        /// Canonical name.
        weight: String,
        /// How.
        scheme: Scheme,
    },
    /// A rotation of nothing.
    #[error("`residual`, `value` and `mlp` are all `false`")]
    NothingToRotate,
    /// `mlp = true`, and nothing reads an activation function.
    #[error("the model has no MLP whose last layer's input could be rotated")]
    NoMlp,
    /// No norm, attention or gated MLP allows for scales.
    #[error("the model has no channels that could be scaled without changing the function")]
    NothingToScale,
    /// A setting of another method, or one that the method needs.
    #[error("the method `{method}` {problem} `{key}`")]
    Method {
        /// The setting.
        key: &'static str,
        /// Which method.
        method: &'static str,
        /// "has no" or "needs".
        problem: &'static str,
    },
    /// A number out of its range.
    #[error("`{key} = {found}` cannot be: {wanted} is")]
    Number {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: f64,
        /// What could be.
        wanted: &'static str,
    },
    /// A share that is none.
    #[error("`{key} = {found}` is no share: 0 to 1 are")]
    Share {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: f64,
    },
    /// A pattern of zeros that rows have no whole number of.
    #[error("`{weight}` has {columns} inputs, which groups of {of} do not divide")]
    PatternDoesNotFit {
        /// Canonical name.
        weight: String,
        /// Weights of a group that stay.
        keep: usize,
        /// Weights of a group.
        of: usize,
        /// Inputs.
        columns: usize,
    },
    /// A method that picks units, asked for single weights.
    #[error("`{method}` picks channels and heads, and `sparsity` removes single weights")]
    NotOfWeights {
        /// Its name.
        method: &'static str,
        /// Those that pick weights.
        known: Vec<&'static str>,
    },
    /// A matrix that cannot be fitted on what one layer reads.
    #[error("`{weight}` is no matrix that one linear layer reads")]
    NoLayerOfItsOwn {
        /// Canonical name.
        weight: String,
    },
    /// A grid whose codes cannot mean zero, for a weight whose zeros stay.
    #[error("`{weight}` is sparse, and no code of {scheme} means exactly zero")]
    NoZero {
        /// The setting to change: `grid`.
        key: String,
        /// Canonical name.
        weight: String,
        /// How it should have been stored.
        scheme: Scheme,
    },
    /// A step that would remove nothing.
    #[error("there is nothing to remove: `mlp`, `heads`, `kv_heads`, `blocks` and `sparsity` are all missing")]
    NothingToPrune,
    /// A setting that another one gives a meaning.
    #[error("`{key}` says nothing without `{other}`")]
    Idle {
        /// The setting.
        key: &'static str,
        /// The one that is missing.
        other: &'static str,
    },
    /// Activations of 8 or 16 bits, and nothing says how many of them may have 16.
    #[error("`bits = \"auto\"` needs a budget")]
    NoActivationBudget,
    /// Several budgets of activations, or none.
    #[error("`budget` bounds one of `cycles` and `bytes`")]
    OneActivationBudget,
    /// What is no share by which something may grow.
    #[error("`budget.{key}` is {found}, and is to be a share of 0 or more")]
    Increase {
        /// What has the budget.
        key: &'static str,
        /// As it was written.
        found: String,
    },
    /// A file of JSON objects where a text is expected.
    #[error("`{}` holds JSON objects, and nothing says which of their texts is meant", path.display())]
    JsonLines {
        /// The file.
        path: std::path::PathBuf,
        /// What the text is for.
        what: &'static str,
    },
    /// Dialogues, and a model that has no way to write them.
    #[error("the model has no chat template, so its dialogues have no text")]
    NoChatTemplate,
    /// A source of text without a file.
    #[error("a source has no `path`")]
    NoPath,
    /// A budget that no shape meets.
    #[error("no shape meets `{key} = {budget}`: the smallest that is searched has {least}")]
    NoShape {
        /// The setting.
        key: &'static str,
        /// What is allowed.
        budget: String,
        /// The least that any shape costs.
        least: String,
    },
    /// A target that is none, or several.
    #[error("`target` has {found} budgets, and one is wanted")]
    OneBudget {
        /// How many there are.
        found: usize,
    },
    /// A budget for blocks that differ in shape.
    #[error("the blocks of the model differ in their channels or heads, and `target` searches shapes that are the same for all")]
    NotUniform,
    /// A bound that nothing could be below.
    #[error("`{key} = {found}` is no bound: a number above 0 is")]
    Bound {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: f64,
    },
    /// No block adds to a residual stream.
    #[error("the model has no residual stream that blocks only add to")]
    NoSublayers,
    /// `select` and `keep` cancel out.
    #[error("`keep` leaves nothing of what `select` matches")]
    NothingLeft,
}

fn and_others(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " and 1 other weight".into(),
        n => format!(" and {n} other weights"),
    }
}

fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => ", and so did another row or group".into(),
        n => format!(", and so did {n} more rows or groups"),
    }
}

fn backticked(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// What can be done about lost weights: scales of a larger range, or of fewer weights, or nothing.
fn keep_lost(scheme: &Scheme) -> String {
    let scales = match (scheme.granularity, scheme.scale.plain()) {
        (Granularity::Tensor, _) => "`group = \"row\"` gives each row a scale of its own",
        (_, Some(Dtype::F32)) => "a smaller `group` shares a scale among fewer weights",
        _ => "`scale_dtype = \"f32\"` holds small scales",
    };
    format!("{scales}; `lost = \"report\"` goes on and lists them in the report")
}

/// The problem of [`Error::Method`] with a setting that is not there.
pub(crate) const NEEDS: &str = "needs";

/// The problem of [`Error::Method`] with a setting that is another's.
pub(crate) const HAS_NO: &str = "has no";

impl Error {
    /// The setting to look at.
    pub fn key(&self) -> Option<&str> {
        match self {
            Error::NoMatch { key, .. } | Error::DoesNotFit { key, .. } => Some(key),
            Error::AlreadyQuantized { .. } | Error::NoLayerOfItsOwn { .. } => Some("select"),
            Error::PatternDoesNotFit { .. } => Some("sparsity"),
            Error::NotOfWeights { .. } => Some("method"),
            Error::NoZero { key, .. } => Some(key),
            Error::NothingLeft => Some("keep"),
            Error::CodesStay { .. } => Some("kind"),
            Error::NothingToRotate => Some("residual"),
            Error::NoMlp => Some("mlp"),
            Error::NothingToScale | Error::NothingToPrune => Some("kind"),
            Error::Bound { key, .. } => Some(key),
            Error::Idle { key, .. } => Some(key),
            Error::NoActivationBudget => Some("bits"),
            Error::OneActivationBudget | Error::Increase { .. } => Some("budget"),
            Error::OneBudget { .. } | Error::NotUniform | Error::NoShape { .. } => Some("target"),
            Error::NoSublayers => Some("blocks"),
            Error::JsonLines { .. } => Some("path"),
            Error::NoChatTemplate => Some("messages"),
            Error::NoPath => Some("sources"),
            Error::Method { key, problem, .. } => Some(if *problem == NEEDS { "method" } else { key }),
            Error::Share { key, .. } | Error::Setting { key, .. } | Error::Number { key, .. } => Some(key),
            Error::NoGrid { key } => Some(key),
            Error::NoChoices => Some("choices"),
            Error::NoChannels { .. } => Some("hidden"),
            Error::NoRate { .. } => Some("algorithm"),
            Error::BudgetTooSmall { key, .. } => Some(key),
            Error::Contradiction { key, .. } | Error::AlreadyIntegers { key, .. } => Some(key),
            Error::Percentile { .. } => Some("percentile"),
            Error::NoCache => Some("kv"),
            Error::NoActivations => Some("select"),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error)
            | Error::Graph(attar_graph::Error::Tensor(error))
            | Error::DoesNotFit { source: error, .. }
            | Error::Scale { source: error, .. } => error.hint(),
            Error::Lost { scheme, .. } => Some(keep_lost(scheme)),
            Error::NoMatch { nearest, .. } if !nearest.is_empty() => {
                Some(format!("weights here are called {}", nearest.join(", ")))
            }
            Error::NoGrid { key } if key == "grid" => {
                Some("`grid` gives all weights one format, `bits` or `bytes` a budget".into())
            }
            Error::NoGrid { .. } => {
                Some("give the override a `grid`: its weights then have that format, whatever the budget".into())
            }
            Error::NoChoices => Some("leave it out for the usual ones".into()),
            Error::NoRate { .. } => {
                let able: Vec<&str> = QUANTIZERS.iter().filter(|q| q.weighs_bits()).map(|q| q.name()).collect();
                Some(format!("`coded_bits` takes algorithms that weigh bits against losses: {}", able.join(", ")))
            }
            Error::BudgetTooSmall { least, .. } => Some(format!("`{least}` can be met; smaller `choices` allow less")),
            Error::JsonLines { what: "training", .. } => Some("`field` names the text in every object, `messages` the dialogue".into()),
            Error::JsonLines { .. } => Some("name it in `sources`, with the `field` or the `messages` of its objects".into()),
            Error::NoChatTemplate => Some("put a `chat_template.jinja` beside the model, or train on a `field`".into()),
            Error::NoPath => Some("give one, or `kind = \"mixture\"` for attar's own texts, or `kind = \"generate\"` for the model's".into()),
            Error::Idle { key, other } => Some(format!("give `{other}`, or leave `{key}` out")),
            Error::NoShape { key, least, .. } => Some(format!("`{key} = {least}` can be met; beyond that, `distill` a shape of your own")),
            Error::Model(error) => error.hint(),
            Error::TextTooShort { .. } => Some("give more text, or lower `samples` or `length`".into()),
            Error::Line { .. } => Some("`field` names the text in every JSON object".into()),
            Error::Activations { .. } | Error::Loss { .. } => {
                Some("the checkpoint overflows on this text: check it, or calibrate on other text".into())
            }
            Error::Diverged { .. } => {
                Some("lower `learning_rate` or raise `warmup`; what other steps made is kept".into())
            }
            Error::CodesStay { .. } => Some("put this step before the one that quantizes".into()),
            Error::PatternDoesNotFit { .. } => Some("leave it out of `select`, or choose a pattern that divides".into()),
            Error::NotOfWeights { known, .. } => Some(format!("choose {}", backticked(known))),
            Error::NoLayerOfItsOwn { .. } => Some("leave it out of `select`".into()),
            Error::NoZero { .. } => Some("choose a grid with a zero, such as `int4` or `nf4`, for this weight by an `override`".into()),
            Error::NothingToRotate => Some("remove the step, or set one of them to `true`".into()),
            Error::NoMlp => Some("remove `mlp = true`".into()),
            Error::NothingToScale => Some("remove the step".into()),
            Error::NothingToPrune => Some("say what stays: `mlp = 1152` keeps so many channels of every MLP".into()),
            Error::NoActivationBudget => {
                Some("`budget` bounds `bytes` of activations or `cycles` of a `device`: 25% allows a quarter more than 8 bits take".into())
            }
            Error::OneActivationBudget => Some("cycles are those of a `device`; bytes are those of the activations".into()),
            Error::Increase { .. } => Some("`\"10%\"` or `0.1` allows a tenth more than with 8 bits throughout".into()),
            Error::OneBudget { .. } => Some("give one of `parameters`, `bytes`, `macs`, `kv_bytes` and `latency`".into()),
            Error::NotUniform => Some("say what stays by `mlp`, `heads` and `kv_heads`".into()),
            Error::NoSublayers => Some("leave `blocks` out".into()),
            Error::NoChannels { .. } => Some("prune `mlp`, `heads` or `blocks` instead".into()),
            Error::Structure { .. } => Some(
                "`rotate` with `residual = false` needs no particular structure of the residual stream; otherwise remove the step"
                    .into(),
            ),
            Error::Method { key, problem, .. } if *problem == NEEDS => Some(format!("add `{key}` to the step")),
            Error::Method { key, .. } => Some(format!("take `{key}` out, or choose the other method")),
            Error::Contradiction { hint, .. } => Some((*hint).into()),
            Error::Percentile { .. } => Some("99.99 clips one value in ten thousand on either side".into()),
            Error::AlreadyIntegers { .. } => {
                Some("let one step select it, or start from a model whose activations are f32".into())
            }
            Error::NoCache => Some("leave `kv` out".into()),
            Error::NoActivations => Some("select linear layers, or add `kv = \"int8\"`".into()),
            Error::AlreadyQuantized { .. } => Some("start from the checkpoint it was made from, or add it to `keep`".into()),
            _ => None,
        }
    }
}
