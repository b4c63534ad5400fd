//! The problems of the minimalloc benchmark.

use std::{io::Write, path::PathBuf};

use attar_compile::memory::{Effort, Outcome, Problem, minimise, read_csv, solve, validate};

#[test]
fn every_problem_is_solved_at_its_capacity() {
    let Some(folder) = std::env::var_os("ATTAR_SHARED").map(|shared| PathBuf::from(shared).join("data/minimalloc")) else {
        let _ = writeln!(std::io::stderr(), "skipped: ATTAR_SHARED does not say where the minimalloc problems are");
        return;
    };
    for name in ["A", "C", "E", "G", "I", "K"] {
        let text = std::fs::read(folder.join(format!("{name}.1048576.csv"))).unwrap();
        let problem = Problem { buffers: read_csv(&text).unwrap().buffers, capacity: 1_048_576 };
        let solution = solve(&problem, Effort::default()).unwrap();
        let Outcome::Placed(placement, method) = solution.outcome else { panic!("{name}: {:?}", solution.outcome) };
        assert_eq!(validate(&problem, &placement), Ok(()), "{name}");
        assert_eq!(placement.height.max(problem.max_live()), placement.height);
        println!("{name}: {} buffers, height {}, {} nodes, {method}", problem.buffers.len(), placement.height, solution.nodes);
    }
}

/// One byte fewer than live at once is refused at once; the same problem has the same answer.
#[test]
fn what_cannot_fit_is_refused_and_answers_repeat() {
    let text = include_bytes!("../../../../testdata/memory/pieces.csv");
    let buffers = read_csv(text).unwrap().buffers;
    let at = |capacity| solve(&Problem { buffers: buffers.clone(), capacity }, Effort::default()).unwrap();
    assert!(matches!(at(63), attar_compile::memory::Solution { outcome: Outcome::Infeasible(_), nodes: 0 }));
    assert_eq!(at(64), at(64));
    let lowest = minimise(&Problem { buffers: buffers.clone(), capacity: 0 }, Effort::default()).unwrap().unwrap();
    assert_eq!((lowest.at_least, lowest.placement.height), (64, 64));
}
