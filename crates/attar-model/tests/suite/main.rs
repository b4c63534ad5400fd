//! One binary, so that all of it links once.

mod fuzz;
mod golden;
mod graphs;
mod tokenizers;
mod training;
