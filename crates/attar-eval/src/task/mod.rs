//! What can be measured, by the names that recipes, gates and reports use.
//!
//! [`Task`] is the contract, [`TASKS`] the registry. A new task is one file here, one line in the slice, and a file
//! `testdata/tasks/NAME.toml` with settings and a score that somebody else computed.

mod choice;
mod embedding;
mod embedding_drift;
mod embeddings;
mod generate;
mod kind;
mod latency;
pub mod perplexity;
mod record;
mod sts;
mod texts;
mod words;

use attar_tensor::nearest;

pub use generate::SHIPPED as PROMPTS;
pub use kind::{Against, Better, Column, Digits, Invalid, Language, Load, Measurements, Metric, Prepared, Settings, Sides, Task};
pub use texts::shipped_texts;

use crate::{Error, Result};

/// Every task, in the order of the documentation.
pub static TASKS: &[&Task] = &[
    &perplexity::TASK,
    &texts::TASK,
    &choice::TASK,
    &generate::TASK,
    &embeddings::TASK,
    &sts::TASK,
    &embedding_drift::TASK,
    &latency::TASK,
];

/// What an eval measures if it does not say it.
pub const DEFAULT_TASK: &str = "perplexity";

/// The task of that name.
pub fn task(name: &str) -> Result<&'static Task> {
    TASKS.iter().copied().find(|task| task.name == name).ok_or_else(|| Error::UnknownTask {
        found: name.into(),
        nearest: nearest(name, TASKS.iter().map(|task| task.name)).map(Into::into),
        known: TASKS.iter().map(|task| task.name).collect(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of any decoder.
    pub(crate) fn config() -> attar_model::Config {
        let json = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048 });
        attar_model::Config::from_json(std::path::Path::new("config.json"), json).expect("it is one")
    }

    #[test]
    fn names_are_unique_and_kebab_case() {
        let fine = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        for task in TASKS {
            let names: std::collections::BTreeSet<&str> = task.metrics.iter().map(|m| m.name).collect();
            assert!(names.len() == task.metrics.len() && names.iter().all(|name| fine(name)), "{task:?}");
            assert!(fine(task.name) && TASKS.iter().filter(|other| other.name == task.name).count() == 1);
        }
    }

    #[test]
    fn unknown_names_are_answered_with_the_nearest_ones() {
        let error = perplexity::TASK.metric("perplexty").err().unwrap();
        assert!(error.hint().unwrap().starts_with("did you mean `perplexity`?"));
        assert!(task("perplexty").unwrap_err().hint().unwrap().starts_with("did you mean `perplexity`?"));
    }
}
