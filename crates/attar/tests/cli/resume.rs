//! Killed, interrupted, repeated, on one thread or two: the same bytes in the end.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use attar_recipe::step::WALKERS;

use crate::{
    checkpoint::Random,
    room::{ATTAR, Room, assert_same_files},
};

/// Several variants, two exports, an eval: every kind of work there is, and everything that walks through the blocks.
fn recipe() -> String {
    let mut text = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n".to_owned();
    for (grid, group, scales) in
        [("int8", "\"row\"", "absmax"), ("int4", "32", "mse"), ("int3", "64", "mse"), ("int4", "\"tensor\"", "absmax")]
    {
        let name = format!("{grid}-{}", group.trim_matches('"'));
        let step = format!("kind = \"quantize\"\ngrid = \"{grid}\"\ngroup = {group}\nscales = \"{scales}\"\n");
        text += &format!("\n[[variant]]\nname = \"{name}\"\n[[variant.step]]\n{step}");
    }
    text += "\n[data.calibration]\npath = \"testdata/evals/shakespeare-valid.txt\"\nsamples = 6\nlength = 128\n";
    for walker in WALKERS {
        let steps = walker.example.replace("[[step]]", "[[variant.step]]");
        text += &format!("\n[[variant]]\nname = \"{}\"\n{steps}", walker.name);
    }
    text += "\n[[variant]]\nname = \"adapted\"\n[[variant.step]]\nkind = \"quantize\"\ngrid = \"int3\"\n";
    text += "[[variant.step]]\nkind = \"recover\"\nmethod = \"lora\"\nadapters = \"export\"\nepochs = 2\n";
    text += "\n[[export]]\ntarget = \"checkpoint\"\n\n[[export]]\ntarget = \"onnx\"\n";
    text + "\n[[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 128\ntokens = 512\n"
}

/// Variants of [`recipe`] apart from those of walkers.
const VARIANTS: usize = 5;

const RUN: [&str; 3] = ["run", "recipe.toml", "--quiet"];

fn ready() -> Room {
    let room = Room::new();
    room.write("recipe.toml", &recipe());
    room
}

/// What an uninterrupted run gives, and how long it took; run once for all tests.
fn whole() -> &'static (BTreeMap<String, Vec<u8>>, Duration) {
    static WHOLE: OnceLock<(BTreeMap<String, Vec<u8>>, Duration)> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let room = ready();
        let start = Instant::now();
        room.attar(&RUN).exits(0);
        let took = start.elapsed();
        let files = room.files("out");
        assert_eq!(files.keys().filter(|name| name.ends_with("model.onnx")).count(), VARIANTS + WALKERS.len());
        (files, took)
    })
}

fn start(room: &Room) -> Child {
    let mut command = room.command(&RUN);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("attar starts")
}

fn journal_lines(room: &Room) -> usize {
    std::fs::read_to_string(room.path("out/.attar/store/journal")).map_or(0, |text| text.lines().count())
}

/// What Ctrl-C does.
fn interrupt(child: &Child) {
    send("INT", child);
}

fn send(signal: &str, child: &Child) {
    let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().expect("kill is everywhere");
    assert!(kill.success());
}

#[test]
fn a_run_that_was_killed_at_any_moment_ends_with_the_same_bytes() {
    let (wanted, took) = whole();
    let mut random = Random(2);
    let mut killed = 0;
    for kill in 0..12 {
        let room = ready();
        let mut child = start(&room);
        let moment = took.mul_f64(f64::from(random.next()) / f64::from(u32::MAX) * 0.95);
        sleep(moment);
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        let finished = room.path("out/manifest.json").exists();
        assert!(!finished || room.files("out") == *wanted, "a folder with a manifest is a finished one");
        room.attar(&RUN).exits(0);
        assert_same_files(wanted, &room.files("out"), &format!("kill {kill} after {moment:?} of {took:?}"));
    }
    assert!(killed > 0, "every run was over before its kill");
}

#[test]
fn a_run_that_is_killed_again_and_again_gets_through() {
    let (wanted, took) = whole();
    let room = ready();
    let mut random = Random(3);
    let mut lines = 0;
    for _ in 0..4 {
        let mut child = start(&room);
        sleep(took.mul_f64(0.1 + f64::from(random.next()) / f64::from(u32::MAX) * 0.4));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(journal_lines(&room) >= lines, "finished work is kept");
        lines = journal_lines(&room);
    }
    room.attar(&RUN).exits(0);
    assert_same_files(wanted, &room.files("out"), "after four kills");
}

/// Ctrl-C, what service managers and CI send, and what a terminal sends when it goes.
#[test]
fn an_interrupted_run_says_so_and_goes_on_later() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let room = ready();
        // The tests may run where signals are ignored, under `nohup` for one.
        let mut command = room.other_command("env", &[&["--default-signal", ATTAR], &RUN[..]].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coreutils are there");
        while journal_lines(&room) < 3 {
            sleep(Duration::from_millis(2));
        }
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{signal}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.starts_with("stopping after the current unit of work"), "{text}");
        let (_, text) = text.split_once('\n').unwrap();
        assert_eq!(text, "error: interrupted\nhint: finished work is kept: the same command goes on from here\n");
        assert!(!room.path("out/manifest.json").exists());
        room.attar(&RUN).exits(0);
        assert_same_files(&whole().0, &room.files("out"), signal);
    }
}

/// `nohup` ignores the signal that a terminal sends when it goes.
#[test]
fn a_run_outlives_its_terminal_where_that_is_wanted() {
    let room = ready();
    let arguments = [&["-c", "trap '' HUP; exec \"$@\"", "sh", ATTAR], &RUN[..]].concat();
    let mut command = room.other_command("sh", &arguments);
    let mut child = command.stdout(Stdio::null()).spawn().expect("every system has a shell");
    while journal_lines(&room) < 3 {
        sleep(Duration::from_millis(2));
    }
    send("HUP", &child);
    assert!(child.wait().unwrap().success());
    assert_same_files(&whole().0, &room.files("out"), "after SIGHUP");
}

/// Sends Ctrl-C to an eval until it ends, and says how it ended. `trap` is run by the shell that becomes attar.
fn interrupted_eval(trap: &str) -> ExitStatus {
    let room = Room::new();
    let eval = ["eval", "testdata/models/shakespeare-1m", "--data", "testdata/evals/shakespeare-train.txt"];
    let become_attar = format!("{trap}; exec \"$@\"");
    let arguments = [&["-c", &become_attar, "sh", ATTAR], &eval[..]].concat();
    let mut command = room.other_command("sh", &arguments);
    let mut child = command.stdout(Stdio::null()).spawn().expect("every system has a shell");
    loop {
        sleep(Duration::from_millis(200));
        interrupt(&child);
        if let Some(status) = child.try_wait().expect("nobody else waits for it") {
            return status;
        }
    }
}

#[test]
fn an_eval_that_is_interrupted_ends_at_once() {
    // On a busy machine the signal may come before attar listens.
    let status = interrupted_eval(":");
    assert!(status.code() == Some(130) || status.signal() == Some(2), "{status}");
}

/// Shells start what runs in the background so.
#[test]
fn an_eval_that_was_started_to_ignore_interrupts_ends_all_the_same() {
    assert_eq!(interrupted_eval("trap '' INT").code(), Some(130));
}

#[test]
fn a_run_with_nothing_new_does_no_unit_again() {
    let room = ready();
    room.attar(&RUN).exits(0);
    let (files, lines) = (room.files("out"), journal_lines(&room));
    let made = |name: &str| std::fs::metadata(room.path(name)).unwrap().modified().unwrap();
    let times = || ["out/int4-32/onnx/model.onnx.data", "out/int4-32/checkpoint/model.safetensors"].map(made);
    let before = times();
    assert!(lines > 4 * 7, "{lines}");
    room.attar(&RUN).exits(0);
    assert_same_files(&files, &room.files("out"), "the second time");
    assert_eq!((journal_lines(&room), times()), (lines, before), "units and artifacts are not made again");

    // Something else in one variant: its units are made, and only its. Where a row is one group of 128, the bytes are those
    // that were there, and so is what was found out about them: only the four wider weights are judged again.
    room.write("recipe.toml", &recipe().replace("group = \"row\"", "group = 128"));
    room.attar(&RUN).exits(0);
    assert_eq!((journal_lines(&room), times()), (lines + 4 * 7 + 4 + 1, before));
}

#[test]
fn a_damaged_artifact_or_blob_is_made_again() {
    let room = ready();
    room.attar(&RUN).exits(0);
    let files = room.files("out");
    let spoil = |path: &std::path::Path| {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    spoil(&room.path("out/int4-32/onnx/model.onnx.data"));
    std::fs::remove_file(room.path("out/int3-64/checkpoint/model.safetensors")).unwrap();
    let blobs = std::fs::read_dir(room.path("out/.attar/store/blobs")).unwrap().flatten();
    blobs.step_by(5).for_each(|blob| spoil(&blob.path()));
    room.attar(&RUN).exits(0);
    assert_same_files(&files, &room.files("out"), "after damage");
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let run = |threads: &str| {
        let room = ready();
        room.attar(&[&RUN[..], &["--threads", threads]].concat()).exits(0);
        room.files("out")
    };
    let one = run("1");
    assert!(one.contains_key("report.json"));
    assert_same_files(&one, &run("2"), "threads");
    assert_same_files(&one, &run("5"), "threads");
}

#[test]
fn two_runs_at_once_do_not_write_to_one_folder() {
    let room = ready();
    let mut child = start(&room);
    while journal_lines(&room) == 0 {
        sleep(Duration::from_millis(2));
    }
    let said = room.attar(&["run", "recipe.toml"]);
    assert!(child.wait().unwrap().success());
    // The first one may have been over already.
    if said.code != Some(0) {
        assert!(said.exits(3).stderr.contains("another attar is writing to `out`"));
    }
    assert_same_files(&whole().0, &room.files("out"), "the first is not disturbed");
}

/// A kill can fall into the writing of a report: the file that is not whole yet has another name, and goes.
#[test]
fn what_a_killed_run_was_writing_goes() {
    let room = Room::new();
    room.write("recipe.toml", "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n");
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    room.write("out/.partial-abc123", "half a rep");
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    assert!(!room.path("out/.partial-abc123").exists());
    assert!(room.path("out/manifest.json").exists());
}
