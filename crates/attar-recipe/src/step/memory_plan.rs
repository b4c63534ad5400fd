//! The step `memory-plan`: buffers of a file are placed in a memory. It has nothing to do with the model.

use std::{num::NonZeroU64, path::PathBuf, sync::Arc};

use attar_compile::{
    memory::{Answer, Effort, Entries, Planned, write_csv},
    report::memory_map,
};
use attar_settings::Size;
use attar_tensor::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kind::{PlannedTensor, Step, StepError, StepKind};
use crate::{
    Error, ErrorKind, PlacementReport,
    files::{place_buffers, read_buffers},
    model::Working,
    session::Session,
    settings::of,
};

/// Place buffers in a memory so that no two live buffers overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MemoryPlan {
    /// CSV file with the buffers: `id,lower,upper,size`.
    file: PathBuf,
    /// Bytes of the memory, like `1 MiB` [default: as few as possible].
    #[serde(default)]
    capacity: Option<Size>,
    /// Search nodes to visit before giving up.
    #[serde(default = "nodes")]
    nodes: NonZeroU64,
}

fn nodes() -> NonZeroU64 {
    NonZeroU64::new(Effort::default().nodes).unwrap_or(NonZeroU64::MIN)
}

pub(super) static MEMORY_PLAN: StepKind = StepKind {
    name: "memory-plan",
    about: "Place buffers in a memory so that no two live buffers overlap",
    schema: of::<MemoryPlan>,
    build: |section| Ok(Box::new(section.finish::<MemoryPlan>(&["kind".into()])?)),
    folder: Some("placed"),
    is_verb: false,
    examples: &[],
    looks_inside: false,
    trains: false,
    needs_tokens: false,
    predicts: false,
};

/// Buffers and where they are placed.
struct Placed {
    entries: Entries,
    plan: Planned,
}

impl Step for MemoryPlan {
    fn kind(&self) -> &'static StepKind {
        &MEMORY_PLAN
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("settings are JSON")
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        vec![("file".into(), self.file.clone())]
    }

    /// The whole search: what does not fit is known before hours of work.
    fn plan(&self, model: &mut Working) -> Result<Vec<PlannedTensor>, StepError> {
        model.kept.keep(self.placed()?);
        Ok(Vec::new())
    }

    fn run(&self, model: &mut Working, session: &Session<'_>) -> Result<Vec<Digest>, StepError> {
        session.observer.stage(&format!("{}: memory-plan", model.title), 0);
        session.check_interrupt()?;
        let placed = model.kept.get().map_or_else(|| self.placed().map(Arc::new), Ok)?;
        let Placed { entries, plan } = &*placed;
        let Answer::Placed { placement, method, at_least } = &plan.answer else { unreachable!("`placed` gives placements") };
        let map = memory_map(entries, placement, plan.capacity.unwrap_or(0));
        let files = [("placement.csv", write_csv(entries, placement)), ("placement.svg", map)];
        MEMORY_PLAN.leave(model, files.map(|(name, text)| (name.to_owned(), text.into_bytes().into())).into());
        model.findings.push(PlacementReport {
            file: self.file.display().to_string(),
            buffers: entries.ids.len(),
            capacity: plan.capacity,
            max_live: plan.max_live,
            height: placement.height,
            at_least: *at_least,
            fragmentation: plan.fragmentation().unwrap_or(0.0),
            method: method.to_string(),
            nodes: plan.nodes,
        });
        Ok(Vec::new())
    }
}

impl MemoryPlan {
    /// The buffers and a placement, or why there is none.
    fn placed(&self) -> Result<Placed, StepError> {
        let at_file = |error| StepError { key: Some("file".into()), error };
        let entries = read_buffers(&self.file).map_err(at_file)?;
        let effort = Effort { nodes: self.nodes.get() };
        let plan = place_buffers(&entries, self.capacity.map(|size| size.0), effort).map_err(at_file)?;
        match plan.failure(&entries) {
            None => Ok(Placed { entries, plan }),
            Some(why) => Err(self.failed(&plan.answer, why)),
        }
    }

    /// Too little room or patience is the recipe's fault; buffers that contradict each other are the file's.
    fn failed(&self, answer: &Answer, why: String) -> StepError {
        let (key, kind, hint) = match answer {
            Answer::Undecided => ("nodes", ErrorKind::Recipe, Some("give it more `nodes`, or more `capacity`")),
            _ if self.capacity.is_some() => {
                ("capacity", ErrorKind::Recipe, Some("give it more `capacity`, or leave it out to see how much is needed"))
            }
            _ => ("file", ErrorKind::Input, None),
        };
        let error = Error { kind, ..Error::input(why) };
        StepError { key: Some(key.into()), error: error.hint(hint.map(str::to_owned)) }
    }
}
