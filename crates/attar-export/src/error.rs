//! Why an artifact cannot be written, or is not what it should be.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The result of planning, writing or verifying an artifact.
pub type Result<T> = std::result::Result<T, Error>;

/// What a target cannot hold, or what is wrong with an artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight could not be read.
    #[error(transparent)]
    Tensor(#[from] attar_tensor::Error),
    /// The graph is wrong, or its weights are not those of the source.
    #[error(transparent)]
    Graph(#[from] attar_graph::Error),
    /// The model cannot be described, or what was written is no model.
    #[error(transparent)]
    Model(#[from] attar_model::Error),
    /// A number that the chosen format cannot hold.
    #[error("`{tensor}` row {row}, column {column} is {found}, which is too large for {dtype}")]
    Overflow {
        /// Its name in the artifact.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// The number.
        found: f32,
        /// The format.
        dtype: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`, …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// No target has that name.
    #[error("no target is named `{found}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownTarget {
        /// The name asked for.
        found: String,
        /// The closest one that exists.
        nearest: Option<String>,
    },
    /// A weight in an encoding that the target, or the chosen layout, cannot hold.
    #[error("`{node}` reads `{tensor}`, which is {found}; {layout} holds {wanted}")]
    Weight {
        /// The node's output.
        node: String,
        /// Canonical name of the weight.
        tensor: String,
        /// Its encoding.
        found: String,
        /// The target or layout.
        layout: String,
        /// What it holds.
        wanted: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A node that the target cannot express.
    #[error("`{node}` ({op}) is {found}; {target} takes {wanted}")]
    Node {
        /// The node's output.
        node: String,
        /// The op's name.
        op: &'static str,
        /// What it is.
        found: String,
        /// The target.
        target: &'static str,
        /// What can be written.
        wanted: &'static str,
    },
    /// An input or output that the target cannot have.
    #[error("`{name}` is {found}; {target} takes {wanted} as inputs and outputs")]
    Port {
        /// The value.
        name: String,
        /// Its encoding.
        found: String,
        /// The target.
        target: &'static str,
        /// What can be given and returned.
        wanted: &'static str,
    },
    /// A model of another kind than the target is for.
    #[error("{target} takes {wanted}; this model {found}")]
    Kind {
        /// The target.
        target: &'static str,
        /// What it takes.
        wanted: &'static str,
        /// What the model lacks.
        found: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// An option of a target that cannot be what it is.
    #[error("`{key}` of target `{target}` is {found}; {wanted} can be")]
    Option {
        /// The target.
        target: &'static str,
        /// The option.
        key: &'static str,
        /// What it is.
        found: String,
        /// What it can be.
        wanted: String,
    },
    /// Plans that are missing, or are none that the target can hold.
    #[error("the compiled model cannot be used: {reason}")]
    Compiled {
        /// What is wrong.
        reason: String,
    },
    /// A file beside the checkpoint that travels with it and is not what it should be.
    #[error("`{name}` cannot be used: {reason}")]
    Beside {
        /// The file.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A description of the model that its format cannot hold.
    #[error("the model cannot be described: {reason}")]
    Serialize {
        /// What the format says.
        reason: String,
    },
    /// A file of the artifact that cannot be used.
    #[error("`{}` is not a usable artifact: {defect}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        defect: Defect,
    },
    /// A number of the artifact that is not the model's.
    #[error("`{tensor}` row {row}, column {column}: the artifact holds {found}, the model {wanted}")]
    Differs {
        /// Canonical name.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// In the artifact.
        found: f32,
        /// In the model.
        wanted: f32,
    },
    /// A tensor whose numbers are all one and the same, though the model's are not.
    #[error("`{tensor}` holds nothing but {found}; the weights before quantization differ")]
    Constant {
        /// Canonical name.
        tensor: String,
        /// The number.
        found: f32,
    },
    /// Quantization lost more than its width explains.
    #[error("`{tensor}` keeps a signal-to-noise ratio of {found:.1} dB; at least {wanted:.0} dB are wanted of {encoding}")]
    Noise {
        /// Canonical name.
        tensor: String,
        /// Its encoding.
        encoding: String,
        /// In decibels.
        found: f64,
        /// In decibels.
        wanted: f64,
    },
}

/// What is wrong with a file of an artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// Longer than any honest one.
    #[error("it is {length} bytes long; at most {limit} are read")]
    TooLong {
        /// Its length.
        length: u64,
        /// What is read.
        limit: u64,
    },
    /// Messages nested deeper than any honest ones.
    #[error("its messages nest deeper than {limit}")]
    TooDeep {
        /// What is read.
        limit: u32,
    },
    /// Not the bytes of the format.
    #[error("it does not parse: {0}")]
    Parse(String),
    /// Something else than what was written.
    #[error("{what} is {found}; {wanted} was wanted")]
    Unexpected {
        /// Of what: a tensor's dims, type, attribute, …
        what: String,
        /// As found.
        found: String,
        /// As it should be.
        wanted: String,
    },
    /// A tensor that reaches past the end of its data.
    #[error("`{tensor}` lies at bytes {start}..{end} of data that is {length} bytes long")]
    Extent {
        /// The tensor.
        tensor: String,
        /// Its first byte.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// How long the data is.
        length: u64,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Something else in an artifact than what was written.
    pub(crate) fn unexpected(path: &Path, what: String, found: impl ToString, wanted: impl ToString) -> Error {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        Error::Malformed { path: path.into(), defect: Defect::Unexpected { what, found, wanted } }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Tensor(error) => error.hint(),
            Error::Model(error) => error.hint(),
            Error::Overflow { .. } => Some("use `dtype = \"bf16\"` or `dtype = \"f32\"`".into()),
            Error::Graph(attar_graph::Error::Tensor(error)) => error.hint(),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space and run the same command again: finished work is kept".into())
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check the permissions of the file and of the folder it is in".into())
            }
            Error::Weight { hint, .. } | Error::Kind { hint, .. } => Some((*hint).into()),
            Error::Node { target: "safetensors", .. } => {
                Some("use `target = \"checkpoint\"`, or leave out the step that makes it".into())
            }
            Error::Node { target: "tflite", .. } => Some("`target = \"checkpoint\"` takes every model".into()),
            Error::Node { target: "openvino" | "litert-lm", .. } => Some("use `target = \"onnx\"`".into()),
            Error::Node { op: "quantize", .. } => Some("use 8 or 16 bits, or a dynamic scale".into()),
            Error::Beside { .. } => Some("mend the file, or remove it: it is not needed to write the model".into()),
            Error::Malformed { .. } | Error::Differs { .. } => {
                Some("the files were damaged or changed after they were written: export again".into())
            }
            Error::Noise { .. } | Error::Constant { .. } => {
                Some("keep this tensor as it is, or give it more bits or smaller groups".into())
            }
            _ => None,
        }
    }
}
