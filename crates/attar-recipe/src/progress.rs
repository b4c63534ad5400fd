//! Progress of a run, reported to the caller.

/// Is told how far a run is. Called from the run's own thread and from workers.
pub trait Observer: Sync {
    /// Something of `total` units begins; what was before is over.
    fn stage(&self, name: &str, total: u64);
    /// `done` of the stage's units are done; `what` is being worked on.
    fn advance(&self, done: u64, what: &str);
    /// Something worth a line.
    fn note(&self, text: &str);
    /// Whether to stop as soon as nothing is lost.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Ignores everything.
pub struct Silent;

impl Observer for Silent {
    fn stage(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64, _: &str) {}
    fn note(&self, _: &str) {}
}
