//! The real engines of a machine, as the caller finds them.

use std::path::PathBuf;

use attar_eval::{Engine, Installation, Places};

/// The real engines of this machine.
#[derive(Clone, Debug, Default)]
pub struct Engines {
    /// Where to look for them.
    pub places: Places,
    /// An executable that serves engines: the one that runs this.
    pub host: PathBuf,
}

impl Engines {
    /// An engine as it is installed here, or the error that says where it was looked for.
    pub fn find(&self, engine: &'static Engine) -> attar_eval::Result<Installation> {
        self.places.find(engine)
    }
}
