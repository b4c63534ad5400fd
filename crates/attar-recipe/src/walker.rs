//! Who walks through the blocks of a model: the contract behind [`crate::step::WALKERS`].

/// Who walks.
#[derive(Debug)]
pub struct Walker {
    /// Its name: letters and hyphens.
    pub name: &'static str,
    /// What it does on the way, for progress.
    pub doing: &'static str,
    /// Steps of a variant that walk so, as TOML. The tests of resuming run them.
    pub example: &'static str,
}
