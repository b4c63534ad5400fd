//! A store that runs share: at the same time, through kills, while garbage is collected.

use std::{
    collections::BTreeMap,
    fs::File,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::room::{Room, assert_same_files};

const VARIANTS: [&str; 3] = [
    "grid = \"int4\"\ngroup = 32\n",
    "grid = \"int3\"\nalgorithm = \"gptq\"\n",
    "grid = \"int3\"\nalgorithm = \"gptq\"\n[[variant.step]]\nkind = \"autoround\"\niterations = 3\n",
];

/// Plain, calibrated and trained work, and an eval. Keys do not depend on `output`.
fn recipe(output: &str, store: &str, variants: &[&str]) -> String {
    let mut text = format!("recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"{output}\"\n{store}\n");
    text += "\n[data.calibration]\npath = \"testdata/evals/shakespeare-valid.txt\"\nsamples = 8\nlength = 128\n";
    for (number, variant) in variants.iter().enumerate() {
        text += &format!("\n[[variant]]\nname = \"v{number}\"\n[[variant.step]]\nkind = \"quantize\"\n{variant}");
    }
    text += "\n[[export]]\ntarget = \"checkpoint\"\n";
    text + "\n[[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 128\ntokens = 256\n"
}

const SHARED: &str = "store = \"store\"";

/// Recipes `one` and `two`, which share a store and a good part of their units.
fn ready() -> Room {
    let room = Room::new();
    room.write("one.toml", &recipe("one", SHARED, &VARIANTS[..2]));
    room.write("two.toml", &recipe("two", SHARED, &VARIANTS[1..]));
    room
}

fn start(room: &Room, name: &str) -> Child {
    let mut command = room.command(&["run", &format!("{name}.toml"), "--quiet"]);
    command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("attar starts")
}

/// What each recipe writes on its own, with a private store.
fn alone() -> [BTreeMap<String, Vec<u8>>; 2] {
    [("one", &VARIANTS[..2]), ("two", &VARIANTS[1..])].map(|(name, variants)| {
        let room = Room::new();
        let file = format!("{name}.toml");
        room.write(&file, &recipe(name, "", variants));
        room.attar(&["run", &file, "--quiet"]).exits(0);
        files(&room, name)
    })
}

/// The output, but for the digest of a recipe, which counts the name of the store.
fn files(room: &Room, name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = room.files(name);
    files.retain(|name, _| name.ends_with("safetensors") || name.ends_with("report.md"));
    assert!(files.len() > 2, "{:?}", files.keys());
    files
}

fn collect(room: &Room, age: &str) -> Value {
    room.attar(&["store", "gc", "store", "--older-than", age, "--json"]).exits(0).json()
}

fn assert_as_alone(room: &Room, alone: &[BTreeMap<String, Vec<u8>>; 2], why: &str) {
    assert_same_files(&alone[0], &files(room, "one"), why);
    assert_same_files(&alone[1], &files(room, "two"), why);
}

fn journal(room: &Room) -> Vec<String> {
    std::fs::read_to_string(room.path("store/journal")).map_or(Vec::new(), |text| text.lines().map(str::to_owned).collect())
}

#[test]
fn two_runs_that_share_a_store_write_what_each_writes_alone() {
    let alone = alone();
    for _ in 0..3 {
        let room = ready();
        let mut running = ["one", "two"].map(|name| start(&room, name));
        running.iter_mut().for_each(|run| assert!(run.wait().unwrap().success()));
        assert_as_alone(&room, &alone, "side by side");
        let lines = journal(&room);
        lines.iter().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))));
        // All that either made is there for the next.
        room.attar(&["run", "one.toml", "--quiet"]).exits(0);
        room.attar(&["run", "two.toml", "--quiet"]).exits(0);
        assert_eq!(journal(&room), lines, "nothing is made again");
    }
}

#[test]
fn garbage_is_collected_while_runs_go_on() {
    let alone = alone();
    let room = ready();
    let mut running = ["one", "two"].map(|name| start(&room, name));
    let mut collected = 0;
    while running.iter_mut().any(|run| run.try_wait().unwrap().is_none()) {
        if room.path("store/blobs").exists() {
            collected += usize::from(collect(&room, "0s")["running"].as_array().is_some_and(|running| !running.is_empty()));
        }
        sleep(Duration::from_millis(10));
    }
    running.iter_mut().for_each(|run| assert!(run.wait().unwrap().success()));
    assert!(collected > 2, "{collected} collections met a run");
    assert_as_alone(&room, &alone, "while garbage was collected");
    let after = collect(&room, "0s");
    assert!(room.path("store/blobs").read_dir().unwrap().next().is_none(), "nobody uses anything any more");
    assert_eq!(after["running"], Value::Array(Vec::new()));
}

#[test]
fn a_kill_leaves_the_other_run_and_the_next_undisturbed() {
    let alone = alone();
    for moment in [150, 400, 800, 1500] {
        let room = ready();
        let mut running = ["one", "two"].map(|name| start(&room, name));
        sleep(Duration::from_millis(moment));
        running[0].kill().unwrap();
        running[0].wait().unwrap();
        assert!(running[1].wait().unwrap().success());
        room.attar(&["run", "one.toml", "--quiet"]).exits(0);
        assert_as_alone(&room, &alone, &format!("killed after {moment} ms"));
        collect(&room, "30d");
        for folder in ["partial", "leases"] {
            assert!(
                room.path("store").join(folder).read_dir().unwrap().next().is_none(),
                "{folder}: nothing stays of the killed run"
            );
        }
    }
}

#[test]
fn a_line_that_a_kill_cut_off_is_skipped() {
    let room = ready();
    room.attar(&["run", "one.toml", "--quiet"]).exits(0);
    let text = room.read("store/journal");
    let cut = &text[..text.len() - 30];
    room.write("store/journal", cut);
    room.attar(&["run", "one.toml", "--quiet"]).exits(0);
    assert!(room.read("store/journal").starts_with(cut), "nothing that was written is cut away");
    assert_eq!(journal(&room).len(), text.lines().count() + 1, "the unit of the lost line is made again");
}

#[test]
fn old_and_unreachable_blobs_go_and_are_made_again() {
    let room = ready();
    room.attar(&["run", "one.toml", "--quiet"]).exits(0);
    let wanted = files(&room, "one");
    let blobs: Vec<_> = room.path("store/blobs").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let month = Duration::from_secs(31 * 86_400);
    for blob in blobs.iter().step_by(2) {
        File::open(blob).unwrap().set_modified(SystemTime::now() - month).unwrap();
    }
    let old = blobs.len().div_ceil(2);
    let dry = room.attar(&["store", "gc", "store", "--dry-run", "--json"]).exits(0).json();
    assert_eq!(dry["collected"]["expired"]["count"], old);
    assert!(blobs.iter().all(|blob| blob.exists()), "a dry run deletes nothing");
    let said = room.attar(&["store", "gc", "store"]).exits(0).stdout;
    assert!(said.contains("store: freed ") && said.contains(&format!("not used for long  ┆ {old} ")), "{said}");
    assert_eq!(blobs.iter().filter(|blob| blob.exists()).count(), blobs.len() - old);
    std::fs::remove_dir_all(room.path("one")).unwrap();
    room.attar(&["run", "one.toml", "--quiet"]).exits(0);
    assert_same_files(&wanted, &files(&room, "one"), "after garbage was collected");
}

#[test]
fn a_store_can_be_moved() {
    let room = ready();
    room.attar(&["run", "one.toml", "--quiet"]).exits(0);
    let (wanted, lines) = (files(&room, "one"), journal(&room));
    std::fs::rename(room.path("store"), room.path("elsewhere")).unwrap();
    let elsewhere = Room::new();
    std::fs::rename(room.path("elsewhere"), elsewhere.path("store")).unwrap();
    elsewhere.write("one.toml", &recipe("one", SHARED, &VARIANTS[..2]));
    elsewhere.attar(&["run", "one.toml", "--quiet"]).exits(0);
    assert_same_files(&wanted, &files(&elsewhere, "one"), "with a store from elsewhere");
    assert_eq!(journal(&elsewhere), lines, "nothing is made again");
}

#[test]
fn what_is_no_store_is_refused() {
    let room = Room::new();
    std::fs::create_dir(room.path("folder")).unwrap();
    room.attar(&["store", "gc", "folder"])
        .exits(3)
        .says("`folder` is not a store: it has no folders `blobs`, `leases` and `partial`");
    assert!(room.path("folder").read_dir().unwrap().next().is_none());
    // A cache of another tool has folders of that name, too.
    let foreign = room.path(&format!("folder/blobs/{}", "0".repeat(64)));
    std::fs::create_dir(room.path("folder/blobs")).unwrap();
    std::fs::write(&foreign, "weights").unwrap();
    room.write("folder/journal", "Monday: rain.\nTuesday: sun.\n");
    room.attar(&["store", "gc", "folder", "--older-than", "0s"]).exits(3).says("`folder` is not a store");
    assert!(foreign.exists());
    assert_eq!(room.read("folder/journal"), "Monday: rain.\nTuesday: sun.\n");
    room.attar(&["store", "gc", "store", "--older-than", "30"]).exits(2).says("expected an age like `30d`");
    room.attar(&["store"]).exits(2);
}
