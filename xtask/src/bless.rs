//! `bless`: the tests, told to rewrite their golden files instead of comparing with them.

use crate::Failure;
use crate::checkout::Checkout;
use crate::test;

pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<(), Failure> {
    test::run_with(checkout, arguments, &[("BLESS", "1")])
}
