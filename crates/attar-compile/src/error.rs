//! Why something cannot be compiled.

/// The result of compiling.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {}
