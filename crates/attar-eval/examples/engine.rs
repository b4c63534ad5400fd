//! The smallest host of an engine: what `attar engine` is, for the tests of this crate.

fn main() -> std::io::Result<()> {
    attar_eval::engine::serve(std::io::stdin().lock(), std::io::stdout().lock())
}
