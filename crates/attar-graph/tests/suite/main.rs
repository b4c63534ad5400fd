//! One binary, so that all of it links once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attention;
mod dims;
mod exprs;
mod filetests;
mod fuzz;
mod inputs;
mod integers;
mod norms;
mod ops;
mod random;
mod text;
mod texts;
mod verify;
