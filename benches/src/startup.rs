//! `attar --help`: what a person waits for before anything happens.

use std::process::{Command, Stdio};

use crate::{
    Bench, Failure, cost, host,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench = Bench { name: "startup", about: "The median of 21 starts", quick: true, run };

const STARTS: usize = 21;

fn run(_options: &[String]) -> Result<(), Failure> {
    let attar = host::attar()?;
    let (nothing, help) = (median(&mut Command::new("true"))?, median(Command::new(&attar).arg("--help"))?);
    let mut table = Table::new();
    let milliseconds = |cost: cost::Cost| format!("{:.1} ms", cost.wall * 1e3);
    table.add(Row { work: "true", cost: nothing, rate: milliseconds(nothing), ratio: "1".into(), goal: "" });
    let ratio = format!("{:.1} x", help.wall / nothing.wall);
    table.add(Row { work: "attar --help", cost: help, rate: milliseconds(help), ratio, goal: "50 ms, 30 MB" });
    table.print();
    Ok(())
}

fn median(command: &mut Command) -> Result<cost::Cost, Failure> {
    command.stdout(Stdio::null());
    let mut costs = (0..STARTS).map(|_| cost::of_command(command)).collect::<Result<Vec<_>, _>>()?;
    costs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    Ok(costs[STARTS / 2])
}
