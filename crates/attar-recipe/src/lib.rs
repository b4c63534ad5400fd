//! A declarative file to a resumable, cached, reported run.
//!
//! [`Recipe::parse`] turns text into typed settings with exact positions for every error; [`plan`] says what a run would
//! do, before any work; [`run`] does it: steps as units in a store, exports that are verified, evals, gates, a report.
//! The command line is a thin layer over this crate: every verb builds a recipe.

mod adapters;
mod advice;
mod artifact;
mod baseline;
mod coded;
mod data;
mod described;
mod divergence;
mod document;
mod engines;
mod error;
mod existing;
mod extras;
mod files;
mod inputs;
mod json;
mod kept;
mod lock;
mod made;
mod manifest;
mod measure;
mod model;
mod needs;
mod opened;
mod output;
mod overlap;
mod page;
mod plan;
mod plans;
mod plot;
mod predict;
mod profile;
mod progress;
mod publish;
mod recipe;
mod report;
mod run;
mod runner;
mod schema;
mod session;
mod settings;
mod shape;
mod shown;
mod side;
mod size;
mod source;
pub mod step;
mod sweep;
mod table;
mod tokens;
mod walk;
mod walker;
mod words;
mod written;

pub use attar_settings::Size;
pub use engines::Engines;
pub use error::{Error, ErrorKind, Result};
pub use existing::Existing;
pub use files::{data_beside, place_buffers, prove_plan, read_buffers, read_plan, read_proof, unusable};
pub use lock::{Lock, LockMode};
pub use output::PROMISED as RUN_FILES;
pub use page::{RunReport, of_runs as compare_runs};
pub use plan::{Plan, PlannedExport, PlannedVariant, plan};
pub use plans::{emit_plans, export_plans, holds_plans};
pub use predict::beyond;
pub use profile::{PROFILES, Profile};
pub use progress::{Observer, Silent};
pub use recipe::{Eval, Export, Recipe, Variant};
pub use report::{
    ActivationReport, AllocationReport, ArtifactReport, CandidateReport, ChoiceReport, ChunkReport, CodedReport,
    CompilationReport, CutReport, DistillReport, EvalReport, Findings, FrontReport, FusionReport, LossReport, MeasuredPoint,
    ModelReport, PhaseReport, PlacementReport, PlainReport, ProofReport, PruneReport, RemovedReport, Report, SimulationReport,
    SiteReport, SparseReport, TensorReport, Timed, TransformReport, VariantReport, Way, WidthReport, WidthsReport, fusion_table,
};
pub use run::{Request, evaluate, run};
pub use runner::RunnerKind;
pub use schema::{schema, verb_schema};
pub use shown::{shown, shown_json, shown_on_a_line};
pub use size::ModelSize;
pub use source::what_was_read;
pub use step::PlannedTensor;
pub use sweep::{Front, Point, Points, Sweep, sweep};
pub use table::{Table, bytes};
pub use walker::Walker;
