//! Errors of tensors, files and the store.

use std::{io, path::PathBuf};

/// The result of reading or writing tensors.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a tensor, a file or the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`, …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A file breaks the format it claims to be in.
    #[error("`{}` is not a usable {format} file: {defect}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// `safetensors`, `GGUF`, …
        format: &'static str,
        /// What is wrong.
        defect: Defect,
    },
    /// No file here is a checkpoint.
    #[error("`{}` is not a checkpoint: {wanted}", path.display())]
    NotACheckpoint {
        /// The path.
        path: PathBuf,
        /// What would have made it one.
        wanted: &'static str,
    },
    /// A file of a kind that is known and not read.
    #[error("`{}` is {kind}, which attar does not read", path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// The way out.
        hint: &'static str,
    },
    /// The name of a model on a hub.
    #[error("nothing here is called `{name}`, which looks like the name of a model on the Hugging Face hub")]
    Hub {
        /// As given.
        name: String,
        /// Its owner and name.
        id: String,
    },
    /// Weights under names from which it does not follow which of them are the model.
    #[error("`{}` does not say which files are the model; there are {}", folder.display(), candidates.join(", "))]
    Candidates {
        /// The folder.
        folder: PathBuf,
        /// Files that could be.
        candidates: Vec<String>,
        /// The way out.
        hint: &'static str,
    },
    /// A name that leads out of the folder.
    #[error("`{by}` of `{}` names `{name}`, which is not inside that folder", folder.display())]
    Outside {
        /// The checkpoint.
        folder: PathBuf,
        /// What names it: a file, or `a link`.
        by: String,
        /// As named.
        name: String,
    },
    /// A part of a split GGUF file is not there.
    #[error("`{}`, part {number} of {count}, is missing", path.display())]
    MissingPart {
        /// The part's file.
        path: PathBuf,
        /// From 1.
        number: u64,
        /// Parts in all.
        count: u64,
    },
    /// The index names a shard that is not there.
    #[error("shard `{shard}` is missing from `{}`; `{tensor}` lies in it", folder.display())]
    MissingShard {
        /// The checkpoint.
        folder: PathBuf,
        /// The file's name.
        shard: String,
        /// One tensor that needs it.
        tensor: String,
    },
    /// A name that no tensor has.
    #[error("no tensor is named `{name}`{}", did_you_mean(nearest))]
    UnknownTensor {
        /// The name asked for.
        name: String,
        /// The closest one that exists.
        nearest: Option<String>,
    },
    /// Rows outside a tensor.
    #[error("rows {start}..{end} of `{name}`, which has {rows}")]
    RowsOutOfRange {
        /// The tensor.
        name: String,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// How many there are.
        rows: usize,
    },
    /// The operation does not exist for how the tensor is stored.
    #[error("`{name}` is stored as {encoding}; expected {wanted}")]
    WrongEncoding {
        /// The tensor.
        name: String,
        /// How it is stored.
        encoding: String,
        /// What the caller can use.
        wanted: &'static str,
    },
    /// NaN or infinity among weights.
    #[error("`{name}` holds {count} value(s) that are not finite; the first is {value} in row {row}, column {column}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// How many in the rows that were read.
        count: usize,
        /// The first one.
        value: f32,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// A group that does not divide the columns, and no word on what to do with the rest.
    #[error("group {group} does not divide {columns} columns")]
    GroupDoesNotDivide {
        /// Values per group.
        group: usize,
        /// Columns per row.
        columns: usize,
    },
    /// A scale that its number format cannot hold.
    #[error("a scale of {scale} does not fit in {format}")]
    ScaleOutOfRange {
        /// The scale.
        scale: f32,
        /// The format.
        format: ScaleFormat,
    },
    /// Inconsistent choices of a scheme.
    #[error("`{what}` cannot be combined with `{setting} = {found}`")]
    Contradiction {
        /// The grid or the format of scales with the requirement.
        what: String,
        /// The setting that is restricted: `group`, `scale_dtype`, `asymmetric`.
        setting: &'static str,
        /// As it was asked for.
        found: String,
        /// What would be possible.
        wanted: String,
    },
    /// Text that names no scheme, grid or dtype.
    #[error("`{found}` is not a {what}{}", did_you_mean(nearest))]
    UnknownName {
        /// The text.
        found: String,
        /// `grid`, `dtype`, `scheme`.
        what: &'static str,
        /// The closest word that is one.
        nearest: Option<String>,
    },
    /// A folder that is no store.
    #[error("`{}` is not a store: it has no folders `blobs`, `leases` and `partial`", path.display())]
    NoStore {
        /// The folder.
        path: PathBuf,
    },
    /// A blob that was just there.
    #[error("blob {digest} of the store `{store}` is missing")]
    MissingBlob {
        /// The store.
        store: String,
        /// The name.
        digest: Digest,
    },
    /// A lease whose first line does not say whose it is.
    #[error("`{}` is not a lease of a store", path.display())]
    Lease {
        /// Its file.
        path: PathBuf,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// Shorter than its own fixed part.
    #[error("it is {length} bytes long, too short for {what}")]
    TooShort {
        /// Its length.
        length: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The magic bytes of another format.
    #[error("unexpected magic bytes {found:02x?}")]
    Magic {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// An unsupported version.
    #[error("its version is {found}; supported: {known}")]
    Version {
        /// Its version.
        found: u64,
        /// What we read.
        known: &'static str,
    },
    /// The bytes of every number in the other order.
    #[error("its numbers are in big-endian order; little-endian is expected")]
    BigEndian,
    /// A header larger than the limit, or than the file.
    #[error("its header claims {declared} bytes; the limit is {limit}")]
    HeaderTooLong {
        /// As claimed.
        declared: u64,
        /// What we accept for this file.
        limit: u64,
    },
    /// The header is not the JSON that the format wants: overlaps, holes, wrong sizes, unknown dtypes.
    #[error("its header is invalid: {0}")]
    Header(#[source] serde_json::Error),
    /// Not JSON.
    #[error("line {line}, column {column}: {problem}")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is there.
        problem: String,
    },
    /// JSON that lacks something or has something else.
    #[error("{0}")]
    Content(#[source] serde_json::Error),
    /// A key of a JSON file with another value than the format has.
    #[error("its `{key}` is {found}; expected {wanted}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What the format has.
        wanted: &'static str,
    },
    /// What Git keeps in place of a large file that was not fetched.
    #[error("it is a Git LFS pointer, not the file itself")]
    Pointer,
    /// One name for tensors of two files, and no index that picks one.
    #[error("`{tensor}` is in it and in `{other}`")]
    Twice {
        /// The tensor.
        tensor: String,
        /// The other file.
        other: String,
    },
    /// The header and the length of the file do not agree.
    #[error("its tensors cover {covered} bytes and the file holds {present}{}", if present < covered { ": it was cut short" } else { "" })]
    Length {
        /// By the header.
        covered: u64,
        /// By the file system.
        present: u64,
    },
    /// A count larger than the file could hold.
    #[error("it claims {claimed} {what}, more than its {length} bytes can hold")]
    Count {
        /// `tensors`, `metadata entries`, `array elements`, `characters`.
        what: &'static str,
        /// As claimed.
        claimed: u64,
        /// The file's length.
        length: u64,
    },
    /// A tensor that reaches past the end, or starts where it must not.
    #[error("`{tensor}` is at bytes {start}..{end}; the data is {length} bytes long and aligned to {alignment}")]
    Extent {
        /// The tensor.
        tensor: String,
        /// Its first byte, from the start of the data.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// How long the data is.
        length: u64,
        /// What offsets must be a multiple of.
        alignment: u64,
    },
    /// Two tensors that share bytes or a name.
    #[error("`{first}` and `{second}` overlap")]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A type that we do not read.
    #[error("`{tensor}` is stored as {dtype}, which cannot be read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type, as the format names it.
        dtype: String,
    },
    /// A shape that its type cannot have.
    #[error("`{tensor}` has {columns} columns, not a multiple of the {block} values of a {dtype} block")]
    Block {
        /// The tensor.
        tensor: String,
        /// Values per row.
        columns: u64,
        /// Values per block.
        block: u64,
        /// The block format.
        dtype: &'static str,
    },
    /// Too many dimensions, or a product that overflows.
    #[error("`{tensor}` has the invalid shape {dims:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// As claimed.
        dims: Vec<u64>,
    },
    /// Text that is not UTF-8.
    #[error("the text at byte {offset} is not UTF-8")]
    Text {
        /// Where it starts.
        offset: u64,
    },
    /// A tag that the format does not define.
    #[error("unknown {what} {found} at byte {offset}")]
    Tag {
        /// `value type`, `tensor type`.
        what: &'static str,
        /// As found.
        found: u64,
        /// Where.
        offset: u64,
    },
    /// A metadata entry that cannot be used.
    #[error("its `{key}` is {found}; expected {wanted}")]
    Metadata {
        /// Its key.
        key: String,
        /// What it is.
        found: String,
        /// What can be used.
        wanted: &'static str,
    },
    /// A part of a quantized tensor is missing or has another shape than its scheme says.
    #[error("`{tensor}` is {found}; expected {wanted}")]
    Part {
        /// `NAME.codes`, `NAME.scales` or `NAME.zeros`.
        tensor: String,
        /// By the scheme.
        wanted: String,
        /// In the file.
        found: String,
    },
}

use crate::{Digest, ScaleFormat};

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// The candidate that looks most like `word`, if one is close enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |c: &str| strsim::jaro_winkler(word, c);
    candidates.into_iter().map(|c| (score(c), c)).filter(|(s, _)| *s > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, c)| c)
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// The setting to change, for choices that cannot be.
    pub fn setting(&self) -> Option<&'static str> {
        match self {
            Error::GroupDoesNotDivide { .. } => Some("group"),
            Error::Contradiction { setting, .. } => Some(setting),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => {
                    Some("free some space and run the same command again: finished work is kept".into())
                }
                io::ErrorKind::PermissionDenied => Some("check the permissions of the file and of the folder it is in".into()),
                _ => None,
            },
            Error::Malformed { defect: Defect::Length { covered, present }, .. } if present < covered => {
                Some("the download or copy stopped early: fetch the file again".into())
            }
            Error::Malformed { defect: Defect::Pointer, .. } => Some("fetch the file itself: `git lfs pull` in its folder".into()),
            Error::Malformed { defect: Defect::Twice { .. }, .. } => {
                Some("a `model.safetensors.index.json` says which of two is meant; delete the file that is not".into())
            }
            Error::Foreign { hint, .. } | Error::Candidates { hint, .. } => Some((*hint).into()),
            Error::Hub { id, .. } => {
                Some(format!("attar downloads nothing: `hf download {id} --local-dir FOLDER`, then give that FOLDER"))
            }
            Error::Outside { .. } => Some(
                "a checkpoint names its own files only, and its links lead into it or into the `blobs` of its hub cache: copy the file into the folder"
                    .into(),
            ),
            Error::MissingPart { .. } => Some("put all parts of the split file into one folder, under the names they came with".into()),
            Error::MissingShard { .. } => {
                Some("fetch the missing file, or a `model.safetensors.index.json` that fits the files here".into())
            }
            Error::NotFinite { .. } => Some(
                "the checkpoint is damaged or its training diverged: quantizing it would hide that, so nothing was written"
                    .into(),
            ),
            Error::GroupDoesNotDivide { columns, .. } => {
                let divisors: Vec<String> =
                    [128, 96, 64, 48, 32, 16].iter().filter(|g| columns % **g == 0).map(|g| g.to_string()).collect();
                let fits = match divisors.as_slice() {
                    [] => String::new(),
                    some => format!("a group of {}, ", some.join(", ")),
                };
                Some(format!("use {fits}`group = \"row\"`, or `tail = \"short\"` for one short last group a row"))
            }
            Error::ScaleOutOfRange { .. } => Some("use `scale_dtype = \"f32\"`".into()),
            Error::Contradiction { setting, wanted, .. } => Some(format!("`{setting}` can be {wanted}")),
            Error::NoStore { .. } => Some(
                "a store is the folder that a recipe names as `store`, or `.attar/store` in the output of a recipe with `keep_store = true`"
                    .into(),
            ),
            Error::MissingBlob { .. } => {
                Some("something other than attar deleted it: run the same command again, and it is made again".into())
            }
            Error::Lease { .. } => Some("stop the attar processes that use the store, then delete that file".into()),
            _ => None,
        }
    }
}
