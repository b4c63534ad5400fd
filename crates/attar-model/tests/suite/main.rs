//! One binary, so that all of it links once.

mod files;
mod fuzz;
mod gguf;
mod golden;
mod graphs;
mod quantized;
mod reading;
mod refusing;
mod room;
mod tokenizers;
mod training;
