//! The process that holds an engine, seen from its parent.

use std::{
    io::{self, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{self, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    find::Installation,
    kind::Worker,
    protocol::{self, Reply, Request},
};
use crate::{Error, Result};

/// What all workers in Python do; the engine's session follows.
const PROTOCOL: &str = include_str!("worker.py");

/// The first argument of a host that is to serve an engine; the second is the engine's name.
pub const VERB: &str = "engine";

/// Bytes of the child's standard error that are kept, the last ones.
const LAST_WORDS: usize = 4096;

/// How long a child that broke its pipe may take to end, and its last words to arrive.
const GRACE: Duration = Duration::from_secs(1);

/// How often an ending child is looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// The processes that run.
static RUNNING: Mutex<Vec<Weak<Mutex<Running>>>> = Mutex::new(Vec::new());

/// An engine's process, and the folder of its temporary files: whoever kills it removes them.
struct Running {
    process: process::Child,
    scratch: Option<TempDir>,
}

impl Running {
    /// Ends the process and all that it has started, which are in its group.
    fn kill(&mut self) {
        // What is dead already cannot be killed, which is no harm.
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process_group(
                rustix::process::Pid::from_child(&self.process),
                rustix::process::Signal::KILL,
            );
        }
        let _ = self.process.wait();
        // A file that stays is no reason to fail.
        let _ = self.scratch.take().map(TempDir::close);
    }
}

/// Kills every engine of this process: for callers about to exit, which drops nothing.
pub fn kill_all() {
    let running = std::mem::take(&mut *lock(&RUNNING));
    for process in running.iter().filter_map(Weak::upgrade) {
        lock(&process).kill();
    }
}

/// Binds a process that has just begun to processors: the threads that it starts are bound to them, too.
#[cfg(target_os = "linux")]
fn bind(process: &process::Child, processors: &[usize]) -> io::Result<()> {
    use rustix::{
        process::Pid,
        thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    };
    if processors.is_empty() {
        return Ok(());
    }
    let (mut set, there) = (CpuSet::new(), sched_getaffinity(None)?);
    for processor in processors {
        if *processor >= CpuSet::MAX_CPU || !there.is_set(*processor) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no processor {processor} for this process"),
            ));
        }
        set.set(*processor);
    }
    Ok(sched_setaffinity(Some(Pid::from_child(process)), &set)?)
}

#[cfg(not(target_os = "linux"))]
fn bind(_: &process::Child, processors: &[usize]) -> io::Result<()> {
    if processors.is_empty() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// A process is as good after a panic elsewhere as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = io::Result<Option<(Reply, Vec<f32>)>>;

/// A child that is killed when this is dropped.
pub(super) struct Child {
    title: String,
    process: Arc<Mutex<Running>>,
    requests: Sender<(Request, Vec<u32>)>,
    answers: Receiver<Answer>,
    stderr: LastWords,
    timeout: Duration,
}

impl Child {
    /// Starts the worker of an engine; `host` is the executable that holds engines of [`Worker::Library`].
    /// Its threads are bound to `processors`, if some are given.
    pub(super) fn spawn(installation: &Installation, host: &Path, processors: &[usize], timeout: Duration) -> Result<Child> {
        let scratch = tempfile::tempdir().map_err(|source| Error::EngineStart { host: host.into(), source })?;
        let mut command = command(installation, host);
        command.env("TMPDIR", scratch.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C in a terminal lets the unit of work that needs the engine finish.
        command.process_group(0);
        let spawned = command.spawn();
        let mut process = spawned.map_err(|source| Error::EngineStart { host: command.get_program().into(), source })?;
        bind(&process, processors).map_err(|source| Error::Processors { wanted: processors.to_vec(), source })?;
        let stdin = process.stdin.take().expect("it is piped");
        let stdout = process.stdout.take().expect("it is piped");
        let stderr = LastWords::of(process.stderr.take().expect("it is piped"));
        let (requests, to_send) = mpsc::channel();
        let (to_answer, answers) = mpsc::channel();
        thread::spawn(move || converse(stdin, BufReader::new(stdout), &to_send, &to_answer));
        let process = Arc::new(Mutex::new(Running { process, scratch: Some(scratch) }));
        let mut running = lock(&RUNNING);
        running.retain(|process| process.strong_count() > 0);
        running.push(Arc::downgrade(&process));
        Ok(Child { title: installation.title(), process, requests, answers, stderr, timeout })
    }

    /// Sends a request and waits for its answer. After an error that is not [`Error::Engine`], the child is dead.
    pub(super) fn ask(&mut self, doing: &'static str, request: Request, tokens: &[u32]) -> Result<(Reply, Vec<f32>)> {
        let sent = self.requests.send((request, tokens.to_vec()));
        let answer = match sent {
            Ok(()) => self.answers.recv_timeout(self.timeout),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(Ok(Some((Reply::Failed { message }, _)))) => Err(Error::Engine { title: self.title.clone(), doing, message }),
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(self.nonsense(doing, error.to_string())),
            Ok(Ok(None) | Err(_)) | Err(RecvTimeoutError::Disconnected) => Err(self.died(doing)),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                Err(Error::EngineTimeout { title: self.title.clone(), doing, waited: self.timeout, stderr: self.stderr.text() })
            }
        }
    }

    /// The process's number.
    pub(super) fn process(&self) -> u32 {
        lock(&self.process).process.id()
    }

    /// The error for an answer that makes no sense.
    pub(super) fn nonsense(&mut self, doing: &'static str, found: String) -> Error {
        self.kill();
        Error::Protocol { title: self.title.clone(), doing, found, stderr: self.stderr.text() }
    }

    fn died(&mut self, doing: &'static str) -> Error {
        let until = Instant::now() + GRACE;
        let status = loop {
            let status = lock(&self.process).process.try_wait();
            match status {
                Ok(Some(status)) => break status.to_string(),
                Ok(None) if Instant::now() < until => thread::sleep(PAUSE),
                _ => break "its pipes are closed".into(),
            }
        };
        self.kill();
        Error::EngineDied { title: self.title.clone(), doing, status, stderr: self.stderr.text() }
    }

    fn kill(&mut self) {
        lock(&self.process).kill();
    }
}

fn command(installation: &Installation, host: &Path) -> Command {
    match (&installation.engine.worker, &installation.interpreter) {
        (Worker::Python(session), Some(interpreter)) => {
            let mut command = on_processor(&installation.runner, interpreter);
            // Isolated: the user's own Python settings are not the environment's.
            command.args(["-I", "-c", &[PROTOCOL, session, "\n\nmain()\n"].concat()]);
            command
        }
        _ => {
            let mut command = on_processor(&installation.runner, host);
            command.args([VERB, installation.engine.name]);
            command
        }
    }
}

/// A program after the words that choose its processor.
fn on_processor(runner: &[String], program: &Path) -> Command {
    let Some((emulator, arguments)) = runner.split_first() else { return Command::new(program) };
    let mut command = Command::new(emulator);
    command.args(arguments).arg(program);
    command
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Carries requests and answers until either side is gone. On a thread of its own: a pipe may block, its owner may not.
fn converse(
    mut stdin: process::ChildStdin,
    mut stdout: BufReader<process::ChildStdout>,
    requests: &Receiver<(Request, Vec<u32>)>,
    answers: &Sender<Answer>,
) {
    for (request, tokens) in requests {
        let sent = protocol::write(&mut stdin, &request, bytemuck::cast_slice(&tokens));
        // A child that wrote before it ended has said more than a broken pipe does.
        let answer =
            protocol::read(&mut stdout).and_then(|answer| if answer.is_none() { sent.map(|()| None) } else { Ok(answer) });
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// The end of what a child writes to its standard error.
struct LastWords {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl LastWords {
    fn of(mut stderr: process::ChildStderr) -> LastWords {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                let mut kept = kept.lock().expect("no panic holds this lock");
                kept.extend_from_slice(&buffer[..count]);
                let surplus = kept.len().saturating_sub(LAST_WORDS);
                kept.drain(..surplus);
            }
        });
        LastWords { bytes, reader }
    }

    /// What a dead child said.
    fn text(&self) -> String {
        let until = Instant::now() + GRACE;
        while !self.reader.is_finished() && Instant::now() < until {
            thread::sleep(PAUSE);
        }
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic holds this lock")).into_owned()
    }
}
