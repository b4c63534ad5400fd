//! One binary, so that all of it links once.

mod damage;
mod fuzz;
mod gguf;
mod memory;
mod safetensors;
