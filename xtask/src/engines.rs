//! `engines`: the real runtimes that open what `attar` writes. Versions are pinned, because tolerances are.

use crate::Failure;
use crate::checkout::Checkout;
use crate::venv;

const PINS: &[&str] = &["onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6"];

pub(crate) fn run(checkout: &Checkout, _arguments: &[String]) -> Result<(), Failure> {
    venv::ensure(&checkout.engines(), PINS).map(drop)
}
