//! Memory plans of a folder of problems, each at the capacity in its name: `NAME.CAPACITY.csv`.

use std::path::{Path, PathBuf};

use attar_compile::memory::{Effort, Outcome, Problem, greedy, read_csv, solve, validate};

use crate::{
    Bench, Failure, cost,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench = Bench {
    name: "memory",
    about: "Memory plans of `--problems=DIR`, or of those in ATTAR_SHARED, beside greedy's height",
    quick: false,
    run,
};

/// CPU-seconds for eleven problems like those of minimalloc.
const GOAL: f64 = 15.0;
const GOAL_PROBLEMS: f64 = 11.0;

fn run(options: &[String]) -> Result<(), Failure> {
    let problems = problems(&folder(options)?)?;
    let mut table = Table::new();
    let mut nodes = 0;
    let (rows, all) = cost::of(|| problems.iter().map(|(name, problem)| row(name, problem)).collect::<Result<Vec<_>, _>>());
    for (work, cost, rate, ratio, searched) in rows? {
        table.add(Row { work: &work, cost, rate, ratio, goal: "" });
        nodes += searched;
    }
    let goal = format!("{:.1} CPU s", GOAL * problems.len() as f64 / GOAL_PROBLEMS);
    let rate = format!("{nodes} nodes");
    table.add(Row { work: "all, with greedy and checks", cost: all, rate, ratio: String::new(), goal: &goal });
    table.print();
    Ok(())
}

fn folder(options: &[String]) -> Result<PathBuf, Failure> {
    let named = options.iter().find_map(|option| option.strip_prefix("--problems=")).map(PathBuf::from);
    let shared = || std::env::var_os("ATTAR_SHARED").map(|shared| PathBuf::from(shared).join("data/minimalloc"));
    named.or_else(shared).ok_or_else(|| "`--problems=DIR` is wanted, or ATTAR_SHARED".into())
}

/// By name.
fn problems(folder: &Path) -> Result<Vec<(String, Problem)>, Failure> {
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(capacity) = name.strip_suffix(".csv").and_then(|stem| stem.rsplit_once('.')?.1.parse().ok()) else { continue };
        let buffers = read_csv(&std::fs::read(&path)?).map_err(|error| format!("{name}: {error}"))?.buffers;
        problems.push((name, Problem { buffers, capacity }));
    }
    problems.sort_by(|a, b| a.0.cmp(&b.0));
    if problems.is_empty() { Err("no file is named NAME.CAPACITY.csv".into()) } else { Ok(problems) }
}

type Measured = (String, cost::Cost, String, String, u64);

fn row(name: &str, problem: &Problem) -> Result<Measured, Failure> {
    let (solution, cost) = cost::of(|| solve(problem, Effort::default()));
    let solution = solution?;
    let Outcome::Placed(placement, _) = &solution.outcome else {
        return Err(format!("{name}: {:?}", solution.outcome).into());
    };
    validate(problem, placement).map_err(|violation| format!("{name}: {violation}"))?;
    let (max_live, height, nodes) = (problem.max_live(), placement.height, solution.nodes);
    let rate = format!("{} buffers, max-live {max_live}, height {height}, {nodes} nodes", problem.buffers.len());
    let ratio = format!("greedy {:.3} x", greedy(problem)?.0.height as f64 / height as f64);
    Ok((name.into(), cost, rate, ratio, nodes))
}
