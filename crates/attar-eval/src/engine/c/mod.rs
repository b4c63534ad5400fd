//! A compiled model in C: the C compiler of this machine makes a library of what the target `c` wrote, and this process runs it.
//!
//! The program is integers from end to end, so every compiler and every processor gives the same logits. It runs on one thread.

mod encoder;

use std::{
    ffi::CString,
    fs, io,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
};

use libloading::Library;

use super::kind::{Engine, Failure, Home, Load, Mode, Opens, Program, Session, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "c",
    title: "the C compiler",
    home: Home::Program(Program {
        names: &["cc", "gcc", "clang"],
        variable: "CC",
        way_in: "install a C compiler: `apt install gcc`, `xcode-select --install`",
    }),
    pins: "",
    opens: &[Opens { target: "c", file: "attar_model.h" }],
    modes: &[Mode::Default],
    devices: &["CPU"],
    worker: Worker::Library(|load| Ok(open(load)?)),
};

/// What is compiled of an artifact; `attar_port.c` copies where a device has DMA.
const SOURCES: [&str; 4] = ["attar_api.c", "attar_model.c", "attar_runtime.c", "attar_port.c"];

/// The file of weights.
const WEIGHTS: &str = "attar_weights.bin";

const SHIM: &str = include_str!("shim.c");

/// Bytes of a compiler's messages that are repeated.
const QUOTED: usize = 2000;

/// Why the program did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no device is named `{0}`")]
    Device(String),
    #[error("`{program}` cannot be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("`{program}` ended with {status}: {said}")]
    Compile { program: String, status: std::process::ExitStatus, said: String },
    #[error("what was compiled cannot be loaded: {0}")]
    Loading(#[from] libloading::Error),
    #[error("cannot write what is compiled: {0}")]
    Scratch(#[from] io::Error),
    #[error("`{path}` {problem}")]
    Weights { path: String, problem: String },
    #[error("there is no token {found}: the program has {wanted}")]
    NoToken { wanted: u64, found: u64 },
    #[error(
        "{tokens} tokens do not fit: the program was compiled for {positions}; ask for shorter windows, or compile with a larger `seq` or `decode`"
    )]
    NoRoom { tokens: usize, positions: u64 },
    #[error("no plan of the program reads {tokens} tokens behind {position}")]
    NoPlan { tokens: u64, position: u64 },
    #[error("the program returned the status {0}, which this version does not know")]
    Status(i32),
    #[error("the model's output is `{wanted}`, not `{found}`")]
    Output { wanted: &'static str, found: String },
    #[error("the model's rows are not pooled, so that it has no `sentence_embedding`")]
    NoPooling,
    #[error("rows {rows:?} were asked for, {fed} tokens were fed")]
    Rows { rows: Range<usize>, fed: usize },
    #[error("{length} tokens should stay of {have}")]
    Rewind { length: usize, have: usize },
}

type Read = unsafe extern "C" fn(*const u32, usize, *mut u64) -> i32;
type Rewind = unsafe extern "C" fn(u32);
type Logits = unsafe extern "C" fn() -> *const i16;
type LogitsOf = unsafe extern "C" fn(usize) -> *const i16;

/// What a model that predicts tokens makes.
const LOGITS: &str = "logits";

/// The library of an artifact, whose weights are loaded.
fn open(load: &Load) -> Result<Box<dyn Session>, Error> {
    if !ENGINE.devices.contains(&load.device.as_str()) {
        return Err(Error::Device(load.device.clone()));
    }
    // A name that begins with a dash would be an option of the compiler.
    let model = std::path::absolute(&load.model)?;
    let folder = model.parent().unwrap_or(Path::new("/"));
    let library = compiled(&load.library, folder)?;
    let weights = folder.join(WEIGHTS);
    let path = CString::new(weights.as_os_str().as_bytes()).map_err(io::Error::from)?;
    // SAFETY: the signatures are those of `shim.c`, which was compiled into the library just now; the path ends with a zero.
    let (status, width) = unsafe {
        let open = library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> i32>("attar_engine_open")?;
        let width = library.get::<unsafe extern "C" fn() -> u64>("attar_engine_width")?;
        (open(path.as_ptr()), width() as usize)
    };
    let path = weights.display().to_string();
    let problem = match status {
        0 => None,
        -1 => Some("cannot be read"),
        -2 => Some("has another size than the program's weights"),
        OTHER_WEIGHTS => Some("holds the weights of another program"),
        other => return Err(Error::Status(other)),
    };
    match problem {
        Some(problem) => Err(Error::Weights { path, problem: problem.into() }),
        None if width > 0 => Ok(Box::new(encoder::Encoder::of(library, width)?)),
        None => Ok(Box::new(Compiled::of(library)?)),
    }
}

/// Tokens that it knows, tokens that it reads, and the value of a step of what it makes.
fn sizes(library: &Library) -> Result<(usize, u64, f32), Error> {
    let (mut vocabulary, mut positions, mut step) = (0, 0, 0.0);
    // SAFETY: the signature is that of `shim.c`.
    unsafe {
        let sizes = library.get::<unsafe extern "C" fn(*mut u64, *mut u64, *mut f32)>("attar_engine_sizes")?;
        sizes(&raw mut vocabulary, &raw mut positions, &raw mut step);
    }
    Ok((vocabulary as usize, positions, step))
}

/// What a status of the program means; `about` are the two numbers that come with it, and `tokens` all that it should hold.
fn check(status: i32, [wanted, found]: [u64; 2], (tokens, positions): (usize, u64)) -> Result<(), Error> {
    match status {
        0 => Ok(()),
        NO_TOKEN => Err(Error::NoToken { wanted, found }),
        NO_ROOM => Err(Error::NoRoom { tokens, positions }),
        NO_PLAN => Err(Error::NoPlan { tokens: found, position: wanted }),
        other => Err(Error::Status(other)),
    }
}

/// A compiled model, loaded. Its state is static, so that there is one at a time of each library.
struct Compiled {
    read: Read,
    rewind: Rewind,
    logits: Logits,
    /// Reads up to so many tokens and keeps the logits of each.
    verify: (usize, Read, LogitsOf),
    vocabulary: usize,
    positions: u64,
    step: f32,
    /// Tokens of the last feeding, and how many were read before them.
    fed: Vec<u32>,
    before: usize,
    /// How many of those the program has read: it reads them when rows are asked for.
    done: usize,
    /// Rows of logits that were asked for last, from this token of those fed on.
    rows: Vec<f32>,
    first: usize,
    /// Declared last: the functions are in it.
    _library: Library,
}

impl Compiled {
    fn of(library: Library) -> Result<Compiled, Error> {
        let (vocabulary, positions, step) = sizes(&library)?;
        // SAFETY: the signatures are those of `shim.c`.
        let (read, rewind, logits, verify) = unsafe {
            let most = library.get::<unsafe extern "C" fn() -> u64>("attar_engine_verifies")?() as usize;
            let verify =
                (most, *library.get::<Read>("attar_engine_verify")?, *library.get::<LogitsOf>("attar_engine_logits_of")?);
            let rewind = *library.get::<Rewind>("attar_engine_rewind")?;
            (*library.get::<Read>("attar_engine_read")?, rewind, *library.get::<Logits>("attar_engine_logits")?, verify)
        };
        let none = (Vec::new(), Vec::new());
        Ok(Compiled {
            read,
            rewind,
            logits,
            verify,
            vocabulary,
            positions,
            step,
            fed: none.0,
            before: 0,
            done: 0,
            rows: none.1,
            first: 0,
            _library: library,
        })
    }

    /// Reads the tokens fed before `to` that are not read yet.
    fn advance(&mut self, to: usize) -> Result<(), Error> {
        self.take(self.read, to)
    }

    /// The same by one of the ways to read.
    fn take(&mut self, read: Read, to: usize) -> Result<(), Error> {
        let tokens = &self.fed[self.done..to];
        let mut about = [0; 2];
        // SAFETY: pointer and length are those of one slice; `about` has room for two numbers.
        let status = unsafe { read(tokens.as_ptr(), tokens.len(), about.as_mut_ptr()) };
        check(status, about, (self.before + self.fed.len(), self.positions))?;
        self.done = to;
        Ok(())
    }

    /// Forgets tokens of those fed from number `length` on.
    fn back(&mut self, length: usize) {
        // SAFETY: any position is taken.
        unsafe { (self.rewind)((self.before + length) as u32) };
        self.done = self.done.min(length);
    }

    /// Reads the tokens fed before `to` and appends their logits: several at a time where there is a plan of that and room for it.
    fn read_rows(&mut self, to: usize) -> Result<(), Error> {
        let (most, verify, logits_of) = self.verify;
        while self.done < to {
            let count = most.min(to - self.done);
            if count > 1 && (self.before + self.done + most) as u64 <= self.positions {
                self.take(verify, self.done + count)?;
                // SAFETY: these tokens were just read, so that each has logits.
                (0..count).for_each(|row| self.row(unsafe { logits_of(row) }));
            } else {
                self.advance(self.done + 1)?;
                // SAFETY: a token was read, so that there are logits.
                self.row(unsafe { (self.logits)() });
            }
        }
        Ok(())
    }

    /// Appends the logits that `codes` points to.
    fn row(&mut self, codes: *const i16) {
        // SAFETY: they are as many as the vocabulary has tokens.
        let codes = unsafe { std::slice::from_raw_parts(codes, self.vocabulary) };
        self.rows.extend(codes.iter().map(|code| f32::from(*code) * self.step));
    }

    fn part(&mut self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Error> {
        if output != LOGITS {
            return Err(Error::Output { wanted: LOGITS, found: output.into() });
        }
        if rows.start > rows.end || rows.end > self.fed.len() {
            return Err(Error::Rows { rows, fed: self.fed.len() });
        }
        let held = self.first..self.first + self.rows.len() / self.vocabulary;
        if rows.start < held.start || rows.end > held.end {
            self.back(rows.start);
            self.rows.clear();
            self.first = rows.start;
            // Of those before it, only the cache is needed.
            self.advance(rows.start)?;
            self.read_rows(rows.end)?;
        }
        let at = |row: usize| (row - self.first) * self.vocabulary;
        Ok((&self.rows[at(rows.start)..at(rows.end)], self.vocabulary))
    }
}

/// See `attar_status` in `attar_model.h`.
const OTHER_WEIGHTS: i32 = 4;
const NO_TOKEN: i32 = 5;
const NO_ROOM: i32 = 6;
const NO_PLAN: i32 = 7;

impl Session for Compiled {
    fn outputs(&self) -> Vec<String> {
        vec![LOGITS.into()]
    }

    fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<(), Failure> {
        if afresh {
            self.before = 0;
            self.done = 0;
            self.back(0);
        } else {
            self.advance(self.fed.len())?;
            self.before += self.fed.len();
        }
        let all = self.before + tokens.len();
        if all as u64 > self.positions {
            return Err(Error::NoRoom { tokens: all, positions: self.positions }.into());
        }
        self.fed = tokens.to_vec();
        (self.done, self.first) = (0, 0);
        self.rows.clear();
        Ok(())
    }

    fn rewinds(&self) -> bool {
        true
    }

    fn rewind(&mut self, length: usize) -> Result<(), Failure> {
        let have = self.before + self.fed.len();
        if length > have {
            return Err(Error::Rewind { length, have }.into());
        }
        if length > self.before + self.done {
            self.advance(length - self.before)?;
        }
        self.fed.clear();
        (self.before, self.done) = (length, 0);
        self.back(0);
        self.rows.clear();
        Ok(())
    }

    fn rows(&mut self, output: &str, rows: Range<usize>) -> Result<(&[f32], usize), Failure> {
        Ok(self.part(output, rows)?)
    }
}

/// The artifact in `folder` as a library.
fn compiled(compiler: &Path, folder: &Path) -> Result<Library, Error> {
    let scratch = tempfile::tempdir()?;
    let [shim, library] = ["shim.c", "model.so"].map(|name| scratch.path().join(name));
    fs::write(&shim, SHIM)?;
    let mut command = Command::new(compiler);
    command.args(["-O3", "-std=gnu11", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]).args(processor());
    command.arg("-I").arg(folder).arg(&shim).args(SOURCES.map(|source| folder.join(source)));
    let done = command.arg("-o").arg(&library).stdin(Stdio::null()).output();
    let program = compiler.display().to_string();
    let done = done.map_err(|source| Error::Start { program: program.clone(), source })?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = said.char_indices().nth(QUOTED).map_or(&*said, |(end, _)| &said[..end]).trim().to_owned();
        return Err(Error::Compile { program, status: done.status, said });
    }
    // SAFETY: loading runs nothing of the library: C without constructors.
    let loaded = unsafe { Library::new(&library)? };
    // What is loaded needs no file.
    scratch.close()?;
    Ok(loaded)
}

/// Instructions of this processor that the runtime has kernels for.
fn processor() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return &["-mavx2"];
    }
    &[]
}
