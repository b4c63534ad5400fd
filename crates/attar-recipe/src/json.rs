//! What machines read: pretty JSON with a newline at its end, signed by the tool that wrote it.

use serde::Serialize;

/// The program, with its version.
pub(crate) const TOOL: &str = concat!("attar ", env!("CARGO_PKG_VERSION"));

pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("reports are JSON");
    text.push(b'\n');
    text
}
