//! `c`: a compiled model as freestanding C99. The plans become functions, calls and tables; weights become one binary; the
//! arithmetic and the buffers are `runtime/`, the same for every model.

mod body;
mod compiled;
mod layout;
mod tables;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use attar_compile::{Index, Pooled, Pooling};
use attar_graph::Graph;
use attar_model::Tokenizer;
use attar_tensor::{Digest, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use compiled::files as compiled_files;
use compiled::{Compiled, memory_name};
use layout::Layout;

use crate::{
    Artifact, CONFIG, Content, Error, Format, Input, Original, Plan, Port, Progress, Result, SIDE_FILES, Side, Target,
    TensorEntry, Totals, Verification, kit, target,
};

pub(super) static TARGET: Target = Target {
    name: "c",
    about: "a compiled model as C99 that needs no library: for microcontrollers, NPU firmware and tests (after the step `compile`)",
    version: 2,
    schema: attar_settings::schema::<C>,
    parse: target::parse::<C>,
};

/// How weights are linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Linked {
    /// A binary that an assembler file includes: for GCC, Clang and compatible toolchains.
    #[default]
    Binary,
    /// A C array: for any compiler, and slow to compile for large models.
    Source,
}

/// The target `c`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct C {
    /// How weights are linked: `binary` or `source` [default: binary].
    pub weights: Linked,
}

/// Files that are the same for every model.
const RUNTIME: [(&str, &str); 7] = [
    ("attar_api.c", include_str!("runtime/attar_api.c")),
    ("attar_port.c", include_str!("runtime/attar_port.c")),
    ("attar_port.h", include_str!("runtime/attar_port.h")),
    ("attar_port_check.c", include_str!("runtime/attar_port_check.c")),
    ("attar_runtime.c", include_str!("runtime/attar_runtime.c")),
    ("attar_runtime.h", include_str!("runtime/attar_runtime.h")),
    ("Makefile", include_str!("runtime/Makefile")),
];

/// Examples.
const DECODER: &str = include_str!("runtime/main.c");
const BATCH: &str = include_str!("runtime/batch.c");
const ENCODER: &str = include_str!("runtime/encode.c");
const API: &str = include_str!("runtime/attar_api.h");
const HEADER: &str = "attar_model.h";
const MODEL: &str = "attar_model.c";
const BINARY: &str = "attar_weights.bin";
const TOKENS: &str = "attar_tokens.c";
const TOKENIZER: &str = "tokenizer.json";
/// The sources in the Makefile, to which [`TOKENS`] may be added.
const SOURCES: &str = "attar_model.c attar_runtime.c";

/// Bytes before the weights: magic, format version, digest of what they are made from and of where it lies.
const PREFIX: usize = 64;

/// Raised whenever [`PREFIX`] or the layout behind it changes.
const VERSION: u32 = 1;

const ASSEMBLY: &str = r#"/* The weights, as they are. */
#if defined(__APPLE__)
#define SYMBOL _attar_weights
    .const
#else
#define SYMBOL attar_weights
    .section .rodata.attar_weights, "a"
#endif
    .globl SYMBOL
    .balign ALIGN
SYMBOL:
    .incbin "attar_weights.bin"
    .if . - SYMBOL - BYTES
    .error "attar_weights.bin has another size than the weights of this program"
    .endif
#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
"#;

impl Linked {
    /// The file that is compiled to have them.
    fn file(self) -> &'static str {
        match self {
            Linked::Binary => "attar_weights.S",
            Linked::Source => "attar_weights.c",
        }
    }
}

impl C {
    /// Writes the C of a compiled model's files, by their names in its folder, into `folder`.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another version; a program without embedding or head; a disk that is full.
    pub fn emit(&self, files: &BTreeMap<String, Content>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let compiled = Compiled::open(files)?;
        let layout = Layout::new(&compiled)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            write_atomically(&path, |to| to.write_all(text.as_bytes()).map_err(Error::io("write", &path)))
        };
        let header = prefix(&layout.digest(&compiled)?);
        weights(&compiled, &layout, &header, folder, progress)?;
        let texts = texts(files)?;
        put(HEADER, &model_header(&compiled, &layout, &header, texts.is_some())?)?;
        put(MODEL, &tables::model(&compiled, &layout)?)?;
        if let Some(texts) = &texts {
            put(TOKENS, &tables::tokens(texts, compiled.vocabulary() as usize))?;
        }
        let sources = texts.as_ref().map_or(SOURCES.to_owned(), |_| format!("{SOURCES} {TOKENS}"));
        let example = match (compiled.encoder, compiled.batch) {
            (true, _) => ("main.c", ENCODER),
            (false, 1) => ("main.c", DECODER),
            (false, _) => ("main.c", BATCH),
        };
        for (name, text) in RUNTIME.into_iter().chain([example]) {
            let text = text.replace("WEIGHTS ?= attar_weights.S", &format!("WEIGHTS ?= {}", self.weights.file()));
            put(name, &text.replace(SOURCES, &sources))?;
        }
        match self.weights {
            Linked::Binary => put(
                self.weights.file(),
                &ASSEMBLY.replace("ALIGN", &layout.align.to_string()).replace("BYTES", &layout.weights.to_string()),
            )?,
            Linked::Source => source(folder, &layout)?,
        }
        let mut names: Vec<&str> = RUNTIME
            .iter()
            .map(|(name, _)| *name)
            .chain([HEADER, MODEL, BINARY, "main.c", self.weights.file()])
            .chain(texts.map(|_| TOKENS))
            .collect();
        names.sort_unstable();
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &names, &beside(files, compiled.positions)?)?,
            inputs: vec![match compiled.batch {
                1 => port("tokens", &["count"], "u32"),
                batch => port("tokens", &["count", &batch.to_string()], "u32"),
            }],
            outputs: vec![match compiled.encoder {
                true => port("sentence_embedding", &[&compiled.width.to_string()], "i32"),
                false if compiled.batch > 1 => {
                    port("logits", &[&compiled.batch.to_string(), &compiled.vocabulary().to_string()], "i16")
                }
                false => port("logits", &[&compiled.vocabulary().to_string()], "i16"),
            }],
            totals: totals(&compiled),
            not_quantized: Vec::new(),
            notes: compiled.notes(),
            tensors: entries(&compiled),
        })
    }

    /// Compares every weight and constant in the written binary, and the rows of tokens, with the compiled model's.
    ///
    /// # Errors
    /// The first that differs.
    pub fn compare(&self, files: &BTreeMap<String, Content>, folder: &Path) -> Result<u64> {
        let compiled = Compiled::open(files)?;
        let layout = Layout::new(&compiled)?;
        let path = folder.join(BINARY);
        let mut written = fs::File::open(&path).map_err(Error::io("read", &path))?;
        let mut read = |at: u64, length: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length as usize];
            written.seek(SeekFrom::Start(at)).and_then(|_| written.read_exact(&mut bytes)).map_err(Error::io("read", &path))?;
            Ok(bytes)
        };
        let mut weights = 0;
        for (tensor, offset) in compiled.constants().into_iter().map(|tensor| (tensor, layout.place(tensor))) {
            let wanted = compiled.bytes(memory_name(tensor.space), tensor.address, tensor.bytes())?;
            if read(offset?, tensor.bytes())? != wanted {
                return Err(Error::unexpected(folder, format!("`{}`", tensor.name), "other bytes", "those that were proven"));
            }
            weights += tensor.rows * tensor.columns;
        }
        for (of, rows) in &compiled.tables {
            let (bytes, start) = (2 * rows * compiled.width, layout.table(*of));
            for at in (0..bytes).step_by(1 << 20) {
                let length = (bytes - at).min(1 << 20);
                if read(start + at, length)? != compiled.bytes(of.file(), at, length)? {
                    return Err(Error::unexpected(
                        folder,
                        format!("the rows of `{}`", of.file()),
                        "other bytes",
                        "those of the model",
                    ));
                }
            }
        }
        Ok(weights)
    }
}

impl Format for C {
    fn options(&self) -> Value {
        json!(self)
    }

    fn needs_plans(&self) -> bool {
        true
    }

    fn check(&self, _graph: &Graph) -> Result<Plan> {
        // What it writes are plans, and the step `compile` has said whether there can be any.
        Ok(Plan { tensors: Vec::new(), bytes: 0, notes: Vec::new() })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        self.emit(&model.side.compiled, folder, progress)
    }

    fn verify(&self, model: &Input<'_>, artifact: &Artifact, folder: &Path, _: Option<Original<'_>>) -> Result<Verification> {
        let weights = self.compare(&model.side.compiled, folder)?;
        kit::same_files(artifact, folder)?;
        Ok(Verification { tensors: Vec::new(), weights })
    }
}

/// The bytes of each token, if there is a tokenizer whose tokens have bytes of their own.
fn texts(files: &BTreeMap<String, Content>) -> Result<Option<Vec<Vec<u8>>>> {
    if !files.contains_key(TOKENIZER) {
        return Ok(None);
    }
    Ok(Tokenizer::from_json(Path::new(TOKENIZER), &compiled::whole(files, TOKENIZER)?)?.texts())
}

/// What travels with the model that was compiled, so that evals find its tokenizer. Its configuration names the positions that the
/// program has as those of the model: nothing reads more.
fn beside(files: &BTreeMap<String, Content>, positions: u64) -> Result<Side> {
    let found = SIDE_FILES.iter().filter_map(|name| Some((*name, files.get(*name)?.clone())));
    let mut side = Side { files: found.collect(), ..Side::default() };
    if files.contains_key(CONFIG) {
        let refused = |error: serde_json::Error| Error::Beside { name: CONFIG, reason: error.to_string() };
        side.config = serde_json::from_slice(&compiled::whole(files, CONFIG)?).map_err(refused)?;
        for key in ["max_position_embeddings", "n_positions"] {
            if let Some(found) = side.config.get_mut(key) {
                *found = positions.into();
            }
        }
    }
    Ok(side)
}

fn port(name: &str, dims: &[&str], dtype: &str) -> Port {
    Port { name: name.into(), dims: dims.iter().map(ToString::to_string).collect(), dtype: dtype.into() }
}

fn entries(compiled: &Compiled) -> Vec<TensorEntry> {
    let entry = |tensor: &attar_compile::plan::Placed| TensorEntry {
        name: tensor.name.clone(),
        also: Vec::new(),
        dims: vec![tensor.rows as usize, tensor.columns as usize],
        encoding: tensor.element.to_string(),
        storage: tensor.tile.map_or("by rows".into(), |[rows, columns]| format!("in tiles of {rows} x {columns}")),
        packed: None,
        true_bits: 8 * tensor.bytes(),
        stored_bytes: tensor.bytes(),
        snr_db: None,
    };
    compiled.weights().into_iter().map(entry).collect()
}

fn totals(compiled: &Compiled) -> Totals {
    let mut totals = Totals::default();
    for tensor in compiled.weights() {
        let count = tensor.rows * tensor.columns;
        totals.weights += count;
        totals.quantized_weights += count;
        totals.true_bits += 8 * tensor.bytes();
        totals.stored_bytes += tensor.bytes();
    }
    totals.bits_per_weight = totals.true_bits as f64 / totals.weights.max(1) as f64;
    totals.quantized_bits_per_weight = totals.bits_per_weight;
    totals
}

fn prefix(digest: &Digest) -> [u8; PREFIX] {
    let mut bytes = [0; PREFIX];
    bytes[..8].copy_from_slice(b"attarwts");
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..48].copy_from_slice(digest.as_bytes());
    bytes
}

/// Writes the binary of weights.
fn weights(compiled: &Compiled, layout: &Layout, prefix: &[u8], folder: &Path, progress: Progress<'_>) -> Result<()> {
    let path = folder.join(BINARY);
    let parts = layout.parts.iter().map(|part| (memory_name(part.space), part.from, part.to, part.offset));
    let tables = compiled.tables.iter().map(|(of, rows)| (of.file(), 0, 2 * rows * compiled.width, layout.table(*of)));
    let all: Vec<(&str, u64, u64, u64)> = parts.chain(tables).collect();
    write_atomically(&path, |to| -> Result<()> {
        let mut put = |bytes: &[u8]| to.write_all(bytes).map_err(Error::io("write", &path));
        put(prefix)?;
        let mut written = PREFIX as u64;
        progress(0, layout.weights);
        for (name, from, end, offset) in &all {
            put(&vec![0; (offset - written) as usize])?;
            for at in (*from..*end).step_by(1 << 20) {
                put(&compiled.bytes(name, at, (end - at).min(1 << 20))?)?;
            }
            written = offset + (end - from);
            progress(written, layout.weights);
        }
        put(&vec![0; (layout.weights - written) as usize])
    })
}

/// The binary as a C array.
fn source(folder: &Path, layout: &Layout) -> Result<()> {
    let Layout { align, weights: length, .. } = layout;
    let [from, to] = [BINARY, Linked::Source.file()].map(|name| folder.join(name));
    let mut binary = fs::File::open(&from).map_err(Error::io("read", &from))?;
    write_atomically(&to, |out| -> Result<()> {
        let failed = || Error::io("write", &to);
        let head = format!("#include \"attar_model.h\"\n\n_Alignas({align}) const uint8_t attar_weights[{length}] = {{\n");
        out.write_all(head.as_bytes()).map_err(failed())?;
        let mut piece = [0; 1 << 14];
        loop {
            let count = binary.read(&mut piece).map_err(Error::io("read", &from))?;
            if count == 0 {
                break;
            }
            let mut text = String::with_capacity(5 * count);
            for line in piece[..count].chunks(32) {
                line.iter().for_each(|byte| write!(text, "{byte},").expect("strings grow"));
                text.push('\n');
            }
            out.write_all(text.as_bytes()).map_err(failed())?;
        }
        out.write_all(b"};\n").map_err(failed())
    })
}

fn model_header(compiled: &Compiled, layout: &Layout, prefix: &[u8; PREFIX], texts: bool) -> Result<String> {
    let held = tables::held(compiled)?;
    let runs: Vec<String> = compiled.runs.iter().map(|run| format!("{} ({} tokens)", run.entry.name, run.entry.rows)).collect();
    let bytes: Vec<String> = prefix.iter().map(u8::to_string).collect();
    let mut text = format!(
        "/* A model compiled for {}: {}. */\n#ifndef ATTAR_MODEL_H\n#define ATTAR_MODEL_H\n\n#include \"attar_runtime.h\"\n\n",
        words(&compiled.device),
        runs.join(", ")
    );
    let (pooled, normalized) =
        compiled.pooling.map_or((0, false), |Pooling { of, normalized }| (1 + u64::from(of == Pooled::First), normalized));
    let numbers = [
        ("VOCABULARY", compiled.vocabulary(), "tokens"),
        ("BATCH", compiled.batch, "sequences that are read side by side"),
        ("POSITIONS", compiled.positions, "tokens of each that can be read"),
        ("WIDTH", compiled.width, "numbers of a token's row"),
        ("ALIGN", layout.align, "of arenas and weights"),
        ("SRAM_BYTES", layout.sram, "on-chip memory"),
        ("DRAM_BYTES", layout.dram, "caches and what passes between kernels"),
        ("WEIGHTS_BYTES", layout.weights, "read only"),
        ("EMBEDDING", layout.table(Index::Token), "where the rows of tokens begin"),
        ("POSITION_EMBEDDING", layout.table(Index::Position), "the same of positions, which are added; 0 if there are none"),
        ("TOKEN_TYPE_EMBEDDING", layout.table(Index::TokenType), "the same of types of tokens"),
        ("TOKEN_TYPES", compiled.rows(Index::TokenType).unwrap_or(0), "how many"),
        ("ENCODER", compiled.encoder.into(), "1 if it reads whole texts: attar_encode"),
        ("POOLING", pooled, "rows that attar_pooled adds up: 1 all of them, 2 the first; 0 if the model has no such thing"),
        ("NORMALIZED", normalized.into(), "1 if the model brings the result to length 1"),
        ("HEADER", PREFIX as u64, "bytes that say which weights these are"),
        ("VERIFY", compiled.verified(), "tokens that attar_verify reads at once; 0 if there is no plan of that"),
        ("PLANS", compiled.runs.len() as u64, "runs"),
        ("BUFFERS", held.buffers, "of one kernel at most"),
        ("SLOTS", held.slots, "boxes that these hold at most"),
        ("DEPTH", held.depth, "columns of a tile of weights"),
    ];
    for (name, number, what) in numbers {
        writeln!(text, "#define ATTAR_{name} {number}u /* {what} */").expect("strings grow");
    }
    let what = if compiled.encoder { "ROWS" } else { "LOGITS" };
    writeln!(text, "#define ATTAR_{what}_STEP {:e}f", compiled.logits as f32).expect("strings grow");
    writeln!(text, "#define ATTAR_WEIGHTS_HEADER {{{}}}", bytes.join(", ")).expect("strings grow");
    if texts {
        text += "#define ATTAR_TEXTS 1 /* attar_tokens.c has what tokens stand for */\n";
    }
    text += API;
    Ok(text)
}

/// Text that may stand in a comment.
fn words(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().replace("*/", "* /").replace("/*", "/ *")
}
