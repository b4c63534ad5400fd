//! Why something cannot be compiled.

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pass that is not there.
    #[error("no pass is named `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownPass {
        /// What was asked for.
        name: String,
        /// What there is.
        nearest: Option<String>,
    },
    /// What a pass made is no graph: a bug of ours.
    #[error("pass `{pass}`")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// What is wrong.
        source: attar_graph::Error,
    },
}
