//! `attar memory-plan`: what is placed, what cannot be, and what is no problem at all.

use crate::{
    room::{Room, skip},
    snapshot::Session,
};

/// A rectangle of 64 bytes by 120 moments in sixty pieces: it fits exactly, and no greedy order finds out.
const PIECES: &str = "testdata/memory/pieces.csv";

/// Nine buffers of which never more than 10 bytes live, and which 10 bytes do not hold.
const TANGLE: &str =
    "id,lower,upper,size\na,7,11,4\nb,1,7,2\nc,1,2,4\nd,6,7,3\ne,2,6,1\nf,1,3,1\ng,1,5,3\nh,5,8,2\ni,4,9,3\nother,20,30,9\n";

#[test]
fn buffers_are_placed_or_it_is_told_why_not() {
    let mut session = Session::new("memory-plan");
    let room = Room::new();
    room.write("tangle.csv", TANGLE);
    room.write("small.csv", "size,id,upper,lower\n4,a,3,0\n4,b,9,3\n4,c,9,0\n");
    let good: [(&str, &[&str]); 4] = [
        ("as low as can be", &["memory-plan", PIECES]),
        ("a capacity", &["memory-plan", PIECES, "--capacity", "64", "--out", "out.csv", "--map", "map.svg"]),
        ("a capacity with a unit, where greedy is enough", &["memory-plan", "small.csv", "--capacity", "1 KiB"]),
        ("for machines", &["memory-plan", "small.csv", "--json"]),
    ];
    for (title, arguments) in good {
        session.note(title, &room.attar(arguments).exits(0));
    }
    assert_placed(&room.read("out.csv"), 64);
    assert_eq!(room.read("map.svg").matches("<title>").count(), 60);
    let bad: [(&str, &[&str]); 4] = [
        ("too much lives at once", &["memory-plan", "tangle.csv", "--capacity", "9", "--out", "none.csv"]),
        ("it does not fit, moment by moment it would", &["memory-plan", "tangle.csv", "--capacity", "10", "--out", "none.csv"]),
        ("the same for machines", &["memory-plan", "tangle.csv", "--capacity", "10", "--json"]),
        ("given up", &["memory-plan", PIECES, "--capacity", "64", "--nodes", "10", "--out", "none.csv"]),
    ];
    for (title, arguments) in bad {
        session.note(title, &room.attar(arguments).exits(1));
    }
    assert!(!room.path("none.csv").exists(), "nothing is written without a placement");
    session.check();
}

/// Every row against every row before it.
fn assert_placed(text: &str, capacity: u64) {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("id,lower,upper,size,offset"));
    let rows: Vec<Vec<u64>> =
        lines.map(|line| line.split(',').skip(1).map(|field| field.parse().expect("numbers")).collect()).collect();
    assert_eq!(rows.len(), 60);
    for (i, a) in rows.iter().enumerate() {
        assert!(a[3] + a[2] <= capacity, "{a:?}");
        for b in &rows[..i] {
            let apart = a[1] <= b[0] || b[1] <= a[0] || a[3] + a[2] <= b[3] || b[3] + b[2] <= a[3];
            assert!(apart, "{a:?} {b:?}");
        }
    }
}

#[test]
fn files_that_are_no_problems() {
    let mut session = Session::new("memory-plan-files");
    let room = Room::new();
    let wrong = [
        ("no header", "a,0,3,4\n"),
        ("no rows", "id,lower,upper,size\n"),
        ("a column that is missing", "id,lower,size\na,0,4\n"),
        ("a row that is short", "id,lower,upper,size\na,0,3,4\nb,0,3\n"),
        ("a life that ends before it begins", "id,lower,upper,size\na,3,3,4\n"),
        ("no bytes", "id,lower,upper,size\na,0,3,0\n"),
        ("an id twice", "id,lower,upper,size\na,0,3,4\nb,1,2,3\na,4,5,6\n"),
        ("a number that is none", "id,lower,upper,size\na,0,3,4k\n"),
        ("a number that is too large", "id,lower,upper,size\na,0,99999999999999999999,4\n"),
        ("bytes that are too many", "id,lower,upper,size\na,0,3,18446744073709551615\n"),
    ];
    for (title, text) in wrong {
        room.write("buffers.csv", text);
        session.note(title, &room.attar(&["memory-plan", "buffers.csv"]).exits(3));
    }
    session.note("no file", &room.attar(&["memory-plan", "nowhere.csv"]).exits(3));
    session.note("a capacity that is none", &room.attar(&["memory-plan", PIECES, "--capacity", "much"]).exits(2));
    room.write("small.csv", "id,lower,upper,size\na,0,3,4\n");
    let nowhere = ["memory-plan", "small.csv", "--capacity", "4", "--out", "no/folder/out.csv"];
    session.note("nowhere to write", &room.attar(&nowhere).exits(3));
    session.check();
}

/// The answer hangs on the problem alone.
#[test]
fn the_same_problem_has_the_same_placement_at_any_thread_count() {
    let room = Room::new();
    let plan = |threads: &str| room.attar(&["memory-plan", PIECES, "--json", "--threads", threads]).exits(0).stdout;
    assert_eq!(plan("1"), plan("4"));
}

#[test]
fn the_minimalloc_problems_are_solved_at_their_capacity() {
    let Some(shared) = std::env::var_os("ATTAR_SHARED").map(std::path::PathBuf::from) else {
        return skip("ATTAR_SHARED does not say where the minimalloc problems are");
    };
    let room = Room::new();
    for name in ["A", "C", "E", "G", "I", "K"] {
        let file = shared.join(format!("data/minimalloc/{name}.1048576.csv"));
        let said = room.attar(&["memory-plan", &file.display().to_string(), "--capacity", "1 MiB", "--json"]).exits(0);
        assert!(said.json()["height"].as_u64().is_some_and(|height| height <= 1 << 20), "{name}");
    }
}
