//! Nothing: its `Cargo.toml` is what it is for. `attar-tensor`, which all our crates use, depends on it.
