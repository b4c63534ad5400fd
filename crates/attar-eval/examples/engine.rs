//! The smallest host of an engine: what `attar engine NAME` is, for the tests of this crate.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(2).ok_or("expected `engine NAME`")?;
    let engine = attar_eval::engine(&name)?;
    Ok(attar_eval::engine::serve(engine, std::io::stdin().lock(), std::io::stdout().lock())?)
}
