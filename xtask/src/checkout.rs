//! Where things lie: the repository, cargo's target folder, and the optional folder of larger test material.

use std::path::{Path, PathBuf};

/// The three places every verb starts from, all absolute.
pub(crate) struct Checkout {
    /// The repository's root.
    pub(crate) root: PathBuf,
    /// `CARGO_TARGET_DIR`, or `target` in the root.
    pub(crate) target: PathBuf,
    /// The folder `shared` next to the repository, where a machine has one.
    pub(crate) shared: Option<PathBuf>,
}

impl Checkout {
    /// Reads the environment that `cargo run` gives; the paths of build time stand in when the binary is called by hand.
    pub(crate) fn find() -> Self {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let package = PathBuf::from(package);
        let root = package.parent().expect("xtask lies in the repository's root").to_owned();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => absolute(Path::new(&folder)),
            None => root.join("target"),
        };
        let shared = root.parent().map(|above| above.join("shared")).filter(|folder| folder.is_dir());
        Self { root, target, shared }
    }

    /// The folder of the engines: a virtual environment each.
    pub(crate) fn engines(&self) -> PathBuf {
        self.target.join("engines")
    }
}

/// Relative to the folder the caller stands in, as cargo reads it.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
