//! What a finding is: something that a step leaves for the report, with its table.

use attar_eval::Prediction;

use super::evals::EvalReport;
use crate::table::Table;

/// The findings of one kind: variant by variant, each with its name.
pub(crate) type Found<'f, T> = [(&'f str, &'f [T])];

/// A kind of finding. Everything it does not say is left out of the report.
pub(crate) trait Finding: Sized {
    /// Tables of all variants, each with its title. One without rows is left out.
    fn tables(_: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        Vec::new()
    }

    /// Text of `report.md` after all tables, for what is no table.
    fn sections(_: &Found<'_, Self>, _: &[EvalReport]) -> String {
        String::new()
    }

    /// Puts the findings of a variant into the order in which the report lists them; they are in the order of the steps.
    fn arrange(_: &mut [Self]) {}

    /// The device metrics that it predicts.
    fn prediction(&self) -> Option<Prediction> {
        None
    }
}
