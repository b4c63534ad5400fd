//! A folder of plans as the step `compile` leaves it.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use attar_compile::{
    Entry, Index, Manifest, Plan, Pooling,
    plan::{Placed, Space, VERSION},
    program::Role,
    simulate::time,
};
use attar_tensor::Digest;

use crate::{Content, Error, Result};

/// The file that says what is in the folder.
const MANIFEST: &str = "model.json";

/// The images of memories, which with the tables of the residual stream's rows are what weights are made from.
const IMAGES: [&str; 2] = ["dram.bin", "flash.bin"];

/// The longest plan or manifest that is read.
const LONGEST: u64 = 1 << 28;

/// The largest batch.
const MOST: u64 = 1 << 16;

/// The image of a memory, by its name in the folder.
pub(super) fn memory_name(space: Space) -> &'static str {
    match space {
        Space::Sram => unreachable!("nothing lasts on the chip"),
        Space::Dram => "dram.bin",
        Space::Flash => "flash.bin",
    }
}

/// One run.
pub(super) struct Run {
    pub(super) entry: Entry,
    pub(super) plan: Plan,
}

/// Plans with what they read.
pub(super) struct Compiled<'a> {
    files: &'a BTreeMap<String, Content>,
    pub(super) device: String,
    pub(super) runs: Vec<Run>,
    /// Whether its run reads a whole text and returns a row for each token.
    pub(super) encoder: bool,
    /// What is made of those rows.
    pub(super) pooling: Option<Pooling>,
    /// The tables whose rows are added up to the first values, with the rows of each: that of tokens first.
    pub(super) tables: Vec<(Index, u64)>,
    pub(super) width: u64,
    /// Sequences side by side.
    pub(super) batch: u64,
    pub(super) positions: u64,
    /// The step of logits, or of an encoder's rows.
    pub(super) logits: f64,
}

impl<'a> Compiled<'a> {
    pub(super) fn open(files: &'a BTreeMap<String, Content>) -> Result<Compiled<'a>> {
        let bytes = whole(files, MANIFEST)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| refused(format!("`{MANIFEST}`: {error}")))?;
        if manifest.version != VERSION {
            let Manifest { version, .. } = manifest;
            return Err(refused(format!(
                "its plans are of version {version}; this attar writes and reads version {VERSION}: compile it again"
            )));
        }
        let rows = [manifest.vocabulary, manifest.position_rows, manifest.token_type_rows];
        let tables: Vec<(Index, u64)> = Index::ALL.into_iter().zip(rows).filter_map(|(of, rows)| Some((of, rows?))).collect();
        let listed = |of: &Index| manifest.images.contains_key(of.file());
        if let Some((of, _)) = Index::ALL.iter().zip(rows).find(|(of, rows)| listed(of) != rows.is_some()) {
            return Err(refused(format!(
                "`{MANIFEST}` does not agree with itself: `{}` has a digest or rows, and not both",
                of.file()
            )));
        }
        if manifest.vocabulary.is_none() {
            return Err(refused("the first values of this model are no rows of tables, so there is nothing to look up".into()));
        }
        let (Some(logits), true) = (manifest.logits, manifest.runs.iter().any(|run| run.head)) else {
            return Err(refused(match manifest.encoder {
                true => "its plan ends before the last norm: compile with `head = true`".into(),
                false => "its plans end before the logits: quantize the head to integers and compile with `head = true`".into(),
            }));
        };
        let run = |entry: Entry| {
            let name = format!("{}.plan", entry.name);
            let bytes = whole(files, &name)?;
            let plan = Plan::from_bytes(&bytes).map_err(|error| refused(format!("`{name}`: {error}")))?;
            if manifest.plans.get(&entry.name) != Some(&Digest::of(&bytes)) {
                return Err(refused(format!(
                    "`{name}` is not the plan that was written: its digest is not that in `{MANIFEST}`"
                )));
            }
            let run = Run { entry, plan };
            run.check().map_err(|why| refused(format!("`{name}`: {why}")))?;
            Ok(run)
        };
        let runs = manifest.runs.iter().cloned().map(run).collect::<Result<Vec<Run>>>()?;
        let Manifest { device, width, batch, positions, encoder, pooling, .. } = manifest.clone();
        let compiled = Compiled { files, device, runs, encoder, pooling, tables, width, batch, positions, logits };
        compiled.agree().map_err(refused)?;
        compiled.check()?;
        for (name, found) in images().filter_map(|name| Some((name, files.get(name)?))) {
            if manifest.images.get(name) != Some(&found.digest()?) {
                return Err(refused(format!("`{name}` is not what was written: its digest is not that in `{MANIFEST}`")));
            }
        }
        Ok(compiled)
    }

    /// What the manifest says of runs is what their plans say.
    fn agree(&self) -> std::result::Result<(), String> {
        let Compiled { encoder, width, positions, logits, batch, .. } = *self;
        if batch == 0 || batch > MOST || (encoder && batch > 1) {
            return Err(format!("a batch of {batch} sequences"));
        }
        if !(logits.is_finite() && logits > 0.0) {
            return Err(format!("a step of the logits is {logits}"));
        }
        let mut names = HashSet::new();
        for Run { entry, plan } in &self.runs {
            let Entry { name, rows, past, head, .. } = entry;
            let of = |role: Role| plan.tensors.iter().filter(move |tensor| tensor.role == role);
            let input = of(Role::Input).all(|tensor| [tensor.rows, tensor.columns] == [rows.saturating_mul(batch), width]);
            let shape = match *head {
                true if !encoder => [entry.logits().saturating_mul(batch), self.vocabulary()],
                _ => [rows.saturating_mul(batch), width],
            };
            let output = of(Role::Output).all(|tensor| [tensor.rows, tensor.columns] == shape);
            let states = of(Role::State).all(|tensor| Some(tensor.rows) == positions.checked_mul(batch) && !encoder);
            let room = past.checked_add(*rows).is_some_and(|end| end <= positions);
            let starts = plan.calls.iter().flat_map(|call| &call.operands).filter(|operand| operand.position > 0);
            let start =
                starts.into_iter().all(|operand| operand.position == batch && Some(operand.row) == past.checked_mul(batch));
            let whole = !encoder || [*rows, *past] == [positions, 0];
            if !(whole && input && output && states && room && start && *rows > 0 && names.insert(name)) {
                return Err(format!("`{MANIFEST}` and `{name}.plan` do not agree"));
            }
        }
        Ok(())
    }

    /// Tokens of which a run has the logits of each; 0 if there is none.
    pub(super) fn verified(&self) -> u64 {
        let runs = if self.encoder { &[][..] } else { &self.runs };
        runs.iter().filter(|run| run.entry.every_row).map(|run| run.entry.rows).max().unwrap_or(0)
    }

    /// Sizes of the manifest, the plans and the files agree.
    fn check(&self) -> Result<()> {
        let width = self.width;
        for (name, rows) in self.tables.iter().map(|(of, rows)| (of.file(), *rows)) {
            let found = self.length(name)?;
            if rows.checked_mul(width).and_then(|n| n.checked_mul(2)) != Some(found) {
                return Err(refused(format!("`{name}` has {found} bytes; {rows} rows of {width} int16 are wanted")));
            }
            if self.rows(Index::Position).is_some_and(|rows| rows < self.positions) {
                return Err(refused(format!("`{}` has fewer rows than there are positions", Index::Position.file())));
            }
        }
        for tensor in self.constants() {
            let (name, end) = (memory_name(tensor.space), tensor.address + tensor.bytes());
            let found = self.length(name)?;
            if end > found {
                return Err(refused(format!("`{name}` has {found} bytes; `{}` ends at {end}", tensor.name)));
            }
        }
        Ok(())
    }

    /// Tokens.
    pub(super) fn vocabulary(&self) -> u64 {
        self.rows(Index::Token).unwrap_or(0)
    }

    /// Rows of a table, if there is one.
    pub(super) fn rows(&self, of: Index) -> Option<u64> {
        self.tables.iter().find(|(table, _)| *table == of).map(|(_, rows)| *rows)
    }

    /// Weights and constants of all plans, each once.
    pub(super) fn constants(&self) -> Vec<&Placed> {
        self.once(|role| matches!(role, Role::Weight | Role::Constant))
    }

    /// Weights of all plans, each once.
    pub(super) fn weights(&self) -> Vec<&Placed> {
        self.once(|role| role == Role::Weight)
    }

    fn once(&self, wanted: impl Fn(Role) -> bool) -> Vec<&Placed> {
        let mut known = HashSet::new();
        let tensors = self.runs.iter().flat_map(|run| &run.plan.tensors).filter(|tensor| wanted(tensor.role));
        tensors.filter(|tensor| known.insert(tensor.name.as_str())).collect()
    }

    /// What to know of it.
    pub(super) fn notes(&self) -> Vec<String> {
        let decodes = self.encoder || self.runs.iter().any(|run| run.entry.rows == 1);
        let note =
            "there is no plan of one token: a prompt must have exactly as many tokens as its plans (`decode = true` makes one)";
        if decodes { Vec::new() } else { vec![note.into()] }
    }

    /// Some bytes of a file.
    pub(super) fn bytes(&self, name: &str, from: u64, length: u64) -> Result<Vec<u8>> {
        match content(self.files, name)? {
            Content::File(path) => {
                let mut bytes = vec![0; length as usize];
                let mut file = File::open(path).map_err(Error::io("read", path))?;
                file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
                Ok(bytes)
            }
            other => Ok(other.bytes()?[from as usize..(from + length) as usize].to_vec()),
        }
    }

    /// Of the files that weights are made from.
    pub(super) fn digests(&self) -> Result<Vec<Digest>> {
        images().filter_map(|name| self.files.get(name)).map(Content::digest).collect()
    }

    fn length(&self, name: &str) -> Result<u64> {
        length(content(self.files, name)?)
    }
}

impl Run {
    /// Every index and every box is one of something that is there, and the run ends: it is walked through once, without numbers.
    fn check(&self) -> std::result::Result<(), String> {
        let Plan { tensors, bodies, calls, .. } = &self.plan;
        for call in calls {
            let Some(body) = bodies.get(call.body as usize) else { return Err(format!("`{}` calls no body", call.name)) };
            let operands = call.operands.iter().all(|operand| (operand.tensor as usize) < tensors.len());
            if !operands || call.offsets.len() != body.buffers.len() || call.operands.len() != body.operands as usize {
                return Err(format!("`{}` does not fit its body", call.name));
            }
        }
        for (role, what) in [(Role::Input, "input"), (Role::Output, "output")] {
            if self.tensor(role).is_none() {
                return Err(format!("it has no {what}"));
            }
        }
        time(&self.plan, &self.plan.rates).map(|_| ()).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })
    }

    /// The tensor of that role.
    pub(super) fn tensor(&self, role: Role) -> Option<usize> {
        self.plan.tensors.iter().position(|tensor| tensor.role == role)
    }
}

/// What weights are made from.
fn images() -> impl Iterator<Item = &'static str> {
    IMAGES.into_iter().chain(Index::ALL.into_iter().map(Index::file))
}

pub(super) fn refused(reason: String) -> Error {
    Error::Compiled { reason }
}

fn content<'a>(files: &'a BTreeMap<String, Content>, name: &str) -> Result<&'a Content> {
    files.get(name).ok_or_else(|| refused(format!("there is no `{name}`")))
}

fn length(content: &Content) -> Result<u64> {
    match content {
        Content::File(path) => Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len()),
        other => Ok(other.bytes()?.len() as u64),
    }
}

pub(super) fn whole(files: &BTreeMap<String, Content>, name: &str) -> Result<Vec<u8>> {
    let found = content(files, name)?;
    let bytes = length(found)?;
    if bytes > LONGEST {
        return Err(refused(format!("`{name}` has {bytes} bytes; at most {LONGEST} are read")));
    }
    found.bytes()
}

/// The files of a folder that belong to a compiled model; none if it is no such folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn files(folder: &std::path::Path) -> Result<Option<BTreeMap<String, Content>>> {
    let is_it = |folder: &PathBuf| folder.join(MANIFEST).is_file();
    let Some(folder) = [folder.to_path_buf(), folder.join("compiled")].into_iter().find(is_it) else { return Ok(None) };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
        let entry = entry.map_err(Error::io("read", &folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            files.insert(name, Content::File(entry.path()));
        }
    }
    Ok(Some(files))
}
