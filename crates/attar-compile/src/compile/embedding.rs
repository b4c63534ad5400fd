//! The tables that take tokens to the residual stream: what a runtime reads where the device's program begins.

use std::{io::Write, sync::Arc};

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};
use attar_tensor::Source;

use super::Seen;
use crate::{Error, Result, convert::Residual};

/// The residual stream before the first block, in codes: a row of each table, added up.
#[derive(Clone, Debug)]
pub struct Embedding {
    graph: Graph,
    residual: Residual,
    /// Codes of a row.
    pub width: u64,
    /// That of tokens first.
    pub tables: Vec<Table>,
}

/// Rows of the residual stream.
#[derive(Clone, Debug)]
pub struct Table {
    /// What has a row each.
    pub of: Index,
    /// How many.
    pub rows: u64,
    from: From,
}

/// What rows are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// Tokens.
    Token,
    /// Their positions.
    Position,
    /// Their types, of which encoders have two.
    TokenType,
}

impl Index {
    /// In the order in which their tables lie behind each other.
    pub const ALL: [Index; 3] = [Index::Token, Index::Position, Index::TokenType];

    /// The file of the table.
    pub fn file(self) -> &'static str {
        match self {
            Index::Token => "embedding.bin",
            Index::Position => "position_embedding.bin",
            Index::TokenType => "token_type_embedding.bin",
        }
    }

    /// The input of the graph.
    fn input(self) -> &'static str {
        match self {
            Index::Token => "tokens",
            Index::Position => "positions",
            Index::TokenType => "token_types",
        }
    }
}

/// How rows are found.
#[derive(Clone, Debug)]
enum From {
    /// The value that a run of the graph has for each token.
    Run(ValueId),
    /// The rows of a weight.
    Weight(Expr),
}

/// Rows that are computed at a time.
const CHUNK: u64 = 128;

impl Embedding {
    /// The rows at the value `name`: those of one table, if they depend on their token alone, or of several whose sum they are.
    pub(super) fn of(seen: &Seen, name: &str, residual: Residual) -> Result<Option<Embedding>> {
        let graph = &seen.graph;
        let Some(value) = graph.find(name) else { return Ok(None) };
        let width = residual.exponents.len() as u64;
        let mut embedding = Embedding { graph: graph.clone(), residual, width, tables: Vec::new() };
        let Some(mut tables) = sum(graph, value).filter(|tables| tables.iter().any(|table| table.of == Index::Token)) else {
            let Some(rows) = graph.nodes().iter().find_map(|node| looked_up(graph, node)).map(|table| table.rows) else {
                return Ok(None);
            };
            let table = Table { of: Index::Token, rows, from: From::Run(value) };
            let last = (rows - 1).min(1) as u32;
            let [before, after] = [[0, last], [last, 0]].map(|tokens| embedding.run(value, &seen.source, &tokens));
            let (before, after) = (before?, after?);
            let half = before.len() / 2;
            let is_free = before[..half] == after[half..] && before[half..] == after[..half];
            embedding.tables.push(table);
            return Ok(is_free.then_some(embedding));
        };
        tables.sort_by_key(|table| Index::ALL.iter().position(|index| *index == table.of));
        let twice = tables.windows(2).any(|pair| pair[0].of == pair[1].of);
        Ok((!twice).then_some(Embedding { tables, ..embedding }))
    }

    /// Rows of a table, if there is one.
    pub fn rows(&self, of: Index) -> Option<u64> {
        self.tables.iter().find(|table| table.of == of).map(|table| table.rows)
    }

    /// Bytes of all tables: `[rows, width]` int16 each, little-endian.
    pub fn bytes(&self) -> u64 {
        2 * self.width * self.tables.iter().map(|table| table.rows).sum::<u64>()
    }

    /// Writes one of the tables, a few rows at a time.
    ///
    /// # Errors
    /// If a weight cannot be read, a value is not finite, or the table cannot be written.
    pub fn write(&self, table: &Table, source: &Arc<dyn Source>, to: &mut dyn Write) -> Result<()> {
        for first in (0..table.rows).step_by(CHUNK as usize) {
            let rows = first..table.rows.min(first + CHUNK);
            let values = match &table.from {
                From::Run(value) => self.run(*value, source, &rows.map(|row| row as u32).collect::<Vec<u32>>())?,
                From::Weight(expr) => {
                    let mut values = vec![0.0; ((rows.end - rows.start) * self.width) as usize];
                    expr.read(&**source, rows.start as usize..rows.end as usize, &mut values)?;
                    values
                }
            };
            let codes = self.residual.round(&values);
            let bytes: Vec<u8> = codes.iter().flat_map(|code| (*code as i16).to_le_bytes()).collect();
            to.write_all(&bytes).map_err(|source| Error::ImageWrite { source })?;
        }
        Ok(())
    }

    fn run(&self, value: ValueId, source: &Arc<dyn Source>, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut found = Vec::new();
        super::seen::walk(&self.graph, source, tokens, &mut |id, numbers, _| {
            if id == value {
                found = numbers.to_vec();
            }
            found.is_empty()
        })?;
        Ok(found)
    }
}

/// Rows of the table of positions, if the model has one.
pub(super) fn positions(graph: &Graph) -> Option<u64> {
    let tables = graph.nodes().iter().filter_map(|node| looked_up(graph, node));
    tables.filter(|table| table.of == Index::Position).map(|table| table.rows).next()
}

/// The tables whose rows are added up to a value, if that is all that it is.
fn sum(graph: &Graph, value: ValueId) -> Option<Vec<Table>> {
    let maker = graph.maker(value)?;
    match maker.op {
        Op::Add => {
            let parts: Option<Vec<Vec<Table>>> = maker.inputs.iter().map(|id| sum(graph, *id)).collect();
            Some(parts?.concat())
        }
        _ => looked_up(graph, maker).map(|table| vec![table]),
    }
}

/// The table that a node looks its result up in.
fn looked_up(graph: &Graph, node: &Node) -> Option<Table> {
    let (Op::Embedding, [index, table]) = (&node.op, &node.inputs[..]) else { return None };
    let Origin::Weight(expr) = &graph.get(*table).origin else { return None };
    let [rows, _] = graph.fact(*table).constant_dims()?[..] else { return None };
    let of = Index::ALL.into_iter().find(|of| graph.get(*index).name == of.input())?;
    Some(Table { of, rows: rows as u64, from: From::Weight(expr.clone()) })
}
