//! What `attar` promises to the people and scripts that type it, on the real binary: exit codes, messages word for word,
//! what lies in the output folder afterwards.
//!
//! Every test has a [`room::Room`] of its own to run in. What the binary said is compared with a golden file in
//! `testdata/cli`; `BLESS=1` rewrites those, and a person reads the difference.

mod activations;
mod advice;
mod architectures;
mod beside;
mod budget;
mod c;
mod calibrated;
mod cases;
mod checkpoint;
mod compile;
mod distill;
mod docs;
mod durable;
mod engine;
mod fuse;
mod gates;
mod ground;
mod hostile;
mod inputs;
mod integers;
mod learned;
mod lost;
mod machine;
mod memory_plan;
mod output;
mod page;
mod profiles;
mod pruned;
mod reader;
mod reading;
mod recipes;
mod resume;
mod room;
mod schema;
mod snapshot;
mod store;
mod transforms;
mod verbs;
mod whole;
mod zeros;
