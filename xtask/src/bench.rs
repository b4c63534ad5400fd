//! `bench`: runs the benchmark package, which prints the command, both numbers and their ratio.

use crate::Failure;
use crate::checkout::Checkout;
use crate::child;

const PACKAGE: &str = "attar-bench";

pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    let workspace = child::output(child::cargo(checkout).args(["metadata", "--no-deps", "--format-version", "1"]))?;
    if !workspace.contains(&format!(r#""name":"{PACKAGE}","version""#)) {
        return Err(Failure::Broken(format!("the workspace has no package `{PACKAGE}` yet, so there is nothing to measure")));
    }
    child::run(child::cargo(checkout).args(["run", "--release", "--package", PACKAGE, "--"]).args(arguments))
}
