//! Every test of the crate in one binary, so that it links once.

mod batch;
mod bound;
mod can;
mod cases;
mod chunk;
mod devices;
mod encoders;
mod freedom;
mod fuzz;
mod minimalloc;
mod models;
mod mutate;
mod passes;
mod prove;
mod refused;
mod report;
mod search;
mod shapes;
mod support;
mod walk;
