//! Every kind of finding: a line each, in the order of the report.

use attar_compile::Tiled;
use attar_eval::Prediction;
use serde::{Deserialize, Serialize};

use super::{
    activations::ActivationReport, budget::AllocationReport, coded::CodedReport, compiled::CompilationReport,
    distilled::DistillReport, evals::EvalReport, finding::Finding, fused::FusionReport, lost::LossReport,
    placed::PlacementReport, pruned::PruneReport, simulated::SimulationReport, sparse::SparseReport,
    transformed::TransformReport, widths::WidthsReport,
};
use crate::table::Table;

/// Makes a list per kind, and one function for each thing that is asked of all kinds.
macro_rules! findings {
    ($($(#[$about:meta])* $list:ident: $kind:ty,)*) => {
        /// What the steps of a variant found.
        #[derive(Clone, Debug, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Findings {
            $($(#[$about])* #[serde(skip_serializing_if = "Vec::is_empty")] pub $list: Vec<$kind>,)*
        }

        $(impl Listed for $kind {
            fn list(findings: &mut Findings) -> &mut Vec<$kind> {
                &mut findings.$list
            }
        })*

        impl Findings {
            /// As a report lists them.
            pub(crate) fn arranged(mut self) -> Findings {
                $(<$kind>::arrange(&mut self.$list);)*
                self
            }

            /// The first prediction of a device's metrics.
            pub(crate) fn prediction(&self) -> Option<Prediction> {
                None$(.or_else(|| self.$list.iter().find_map(<$kind>::prediction)))*
            }

            /// Tables with rows, of all variants.
            pub(crate) fn tables(variants: &[(&str, &Findings)]) -> Vec<(&'static str, Table)> {
                let mut tables = Vec::new();
                $(tables.extend(<$kind>::tables(&each(variants, |findings| &findings.$list)));)*
                tables.into_iter().filter(|(_, table)| !table.rows.is_empty()).collect()
            }

            /// Text after the tables, of all variants.
            pub(crate) fn sections(variants: &[(&str, &Findings)], evals: &[EvalReport]) -> String {
                let mut text = String::new();
                $(text += &<$kind>::sections(&each(variants, |findings| &findings.$list), evals);)*
                text
            }
        }
    };
}

findings! {
    /// Shapes that became smaller, in the order of the steps.
    prunings: PruneReport,
    /// Models of which single weights left, in the order of the steps.
    sparsities: SparseReport,
    /// Sparse weights in the coded stream of a device.
    coded: CodedReport,
    /// Changes of weights that keep what the model computes, in the order of the steps.
    transforms: TransformReport,
    /// How budgets were spent, in the order of the steps.
    allocations: AllocationReport,
    /// How the rows of quantized weights are kept, the weights with the worst rows first.
    losses: LossReport,
    /// Runs of training, in the order of the steps.
    distillations: DistillReport,
    /// How budgets of activations were spent, in the order of the steps.
    widths: WidthsReport,
    /// Every activation in integers, the lowest signal-to-noise ratio first.
    activations: ActivationReport,
    /// What passes did to the graph, in the order of the passes.
    fusions: FusionReport,
    /// How products were tiled for devices, in the order of the steps; the Pareto fronts are in `tiles.json`.
    tilings: Tiled,
    /// Plans for devices, in the order of the steps.
    compilations: CompilationReport,
    /// Plans that were proven again, in the order of the steps.
    simulations: SimulationReport,
    /// Buffers that were placed in a memory, in the order of the steps.
    placements: PlacementReport,
}

/// A finding with a list of its own.
pub(crate) trait Listed: Finding {
    /// The list.
    fn list(findings: &mut Findings) -> &mut Vec<Self>;
}

impl Findings {
    /// Adds what a step found.
    pub(crate) fn push<T: Listed>(&mut self, finding: T) {
        T::list(self).push(finding);
    }

    /// Adds all that a step found.
    pub(crate) fn extend<T: Listed>(&mut self, found: impl IntoIterator<Item = T>) {
        T::list(self).extend(found);
    }
}

/// One list of every variant, with the variant's name.
fn each<'f, T>(variants: &[(&'f str, &'f Findings)], list: impl Fn(&'f Findings) -> &'f [T]) -> Vec<(&'f str, &'f [T])> {
    variants.iter().map(|(name, findings)| (*name, list(findings))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(file: &str) -> PlacementReport {
        PlacementReport {
            file: file.into(),
            buffers: 1,
            capacity: None,
            max_live: 8,
            height: 8,
            at_least: Some(8),
            fragmentation: 0.0,
            method: "first fit".into(),
            nodes: 0,
        }
    }

    fn activation(name: &str, snr_db: Option<f64>) -> ActivationReport {
        ActivationReport { name: name.into(), width: 4, encoding: "int8/token".into(), feeds: Vec::new(), snr_db }
    }

    #[test]
    fn kinds_that_nothing_was_found_of_are_absent() {
        let mut findings = Findings::default();
        assert_eq!(serde_json::to_string(&findings).unwrap(), "{}");
        findings.push(placement("a.csv"));
        let json = serde_json::to_value(&findings).unwrap();
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["placements"]);
        let back: Findings = serde_json::from_value(json).unwrap();
        assert_eq!(back.placements, findings.placements);
    }

    #[test]
    fn findings_stay_in_the_order_of_the_steps_and_of_the_variants() {
        let (mut first, mut second) = (Findings::default(), Findings::default());
        first.extend(["a.csv", "b.csv"].map(placement));
        second.push(placement("c.csv"));
        let tables = Findings::tables(&[("one", &first), ("two", &second)]);
        let [(title, table)] = &tables[..] else { panic!("one kind was found, not {}", tables.len()) };
        assert_eq!(*title, "Buffers placed");
        let files: Vec<[&str; 2]> = table.rows.iter().map(|row| [&*row[0], &*row[1]]).collect();
        assert_eq!(files, [["one", "a.csv"], ["one", "b.csv"], ["two", "c.csv"]]);
    }

    #[test]
    fn activations_are_listed_worst_first() {
        let mut findings = Findings::default();
        findings.extend([activation("a", Some(40.0)), activation("b", None), activation("c", Some(12.5))]);
        let names: Vec<String> = findings.arranged().activations.into_iter().map(|a| a.name).collect();
        assert_eq!(names, ["c", "a", "b"]);
    }
}
