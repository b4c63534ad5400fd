//! Passes over graphs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod filetests;
mod models;
mod numbers;
mod random;
