//! One binary, so that all of it links once.

mod damage;
mod gguf;
mod memory;
mod safetensors;
