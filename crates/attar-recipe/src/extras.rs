//! Extra files that a step leaves in the output: one folder per step, named after its kind and numbered from the second on,
//! `compiled`, `compiled-2`. What is written is read back, and listed in the manifest.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use attar_export::FileEntry;
use attar_tensor::Digest;
use serde::Serialize;

use crate::{Error, Result, output::Output, session::Session};

/// What a file holds.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// A blob of the store: of a file that would take much memory.
    Blob {
        path: PathBuf,
        digest: Digest,
    },
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content::Bytes(bytes)
    }
}

/// The files of a step.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    /// Of the step.
    pub(crate) kind: &'static str,
    /// Within its variant's.
    pub(crate) name: String,
    /// Names and contents.
    pub(crate) files: Vec<(String, Content)>,
}

/// A folder in the manifest.
#[derive(Serialize)]
pub(crate) struct WrittenFolder {
    variant: String,
    step: &'static str,
    folder: String,
    files: Vec<FileEntry>,
}

impl Folder {
    /// The bytes of the file of that name, if they are in memory.
    pub(crate) fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find_map(|(other, content)| match content {
            Content::Bytes(bytes) if other == name => Some(&**bytes),
            _ => None,
        })
    }

    /// Its files as exports take them.
    pub(crate) fn contents(&self) -> BTreeMap<String, attar_export::Content> {
        let content = |content: &Content| match content {
            Content::Bytes(bytes) => attar_export::Content::Bytes(bytes.clone()),
            Content::Blob { path, .. } => attar_export::Content::File(path.clone()),
        };
        self.files.iter().map(|(name, own)| (name.clone(), content(own))).collect()
    }

    /// Writes the folder as `folder` of the output.
    pub(crate) fn publish(&self, variant: &str, folder: String, output: &Output, session: &Session<'_>) -> Result<WrittenFolder> {
        let files = write_files(self, output)?;
        session.check_inputs()?;
        output.publish(&folder)?;
        Ok(WrittenFolder { variant: variant.into(), step: self.kind, folder, files })
    }
}

/// The name of the folder after `earlier` ones of its kind.
pub(crate) fn numbered(name: &str, earlier: usize) -> String {
    if earlier == 0 { name.into() } else { format!("{name}-{}", earlier + 1) }
}

/// As a new file, with the permissions of such.
fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    std::io::copy(&mut std::fs::File::open(from)?, &mut std::fs::File::create(to)?)
}

/// Into the unfinished folder.
fn write_files(folder: &Folder, output: &Output) -> Result<Vec<FileEntry>> {
    let unfinished = output.unfinished()?;
    let write = |(name, content): &(String, Content)| {
        let path = unfinished.join(name);
        let (written, digest) = match content {
            Content::Bytes(bytes) => (std::fs::write(&path, bytes).map(|()| bytes.len() as u64), Digest::of(bytes)),
            Content::Blob { path: blob, digest } => (copy(blob, &path), *digest),
        };
        let bytes = written.map_err(|source| attar_tensor::Error::Io { action: "write", path: path.clone(), source })?;
        if Digest::of_file(&path)? != digest {
            return Err(Error::input(format!("`{}` does not read back as it was written", path.display())));
        }
        Ok(FileEntry { name: name.clone(), bytes, digest })
    };
    folder.files.iter().map(write).collect()
}
