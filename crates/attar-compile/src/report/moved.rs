//! What each tensor of a kernel moves, and its lower bound: the bytes that the kernel touches, once, or nothing if the tensor is on
//! the chip. (The bound of a kernel as a whole can be above the sum of these: see `docs/lower-bound.md`.)

use serde::Serialize;

use super::distance;
use crate::{
    Program, TensorId,
    plan::{Call, Plan, Space},
    program::{Attention, Epilogue, Kernel, Linear, Role},
    simulate::CallTrace,
};

/// A tensor in a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MovedReport {
    /// Its name.
    pub name: String,
    /// Bytes read from DRAM or flash.
    pub read: u64,
    /// Bytes written to DRAM.
    pub written: u64,
    /// Lower bound on the bytes.
    pub least: u64,
    /// Bytes moved divided by the lower bound.
    pub distance: f64,
}

/// All tensors of a call, including those on the chip.
pub(super) fn moved(program: &Program, plan: &Plan, call: &Call, kernel: &Kernel, trace: &CallTrace) -> Vec<MovedReport> {
    let mut found: Vec<MovedReport> = Vec::new();
    for (operand, [read, written]) in call.operands.iter().zip(&trace.operands) {
        let placed = &plan.tensors[operand.tensor as usize];
        match found.iter_mut().find(|known| known.name == placed.name) {
            // A residual that is normed and added is one tensor.
            Some(known) => {
                known.read += read;
                known.written += written;
            }
            None => {
                let rows = touched(program, kernel, TensorId(operand.tensor)).unwrap_or(placed.rows);
                let whole = if placed.tile.is_some() { placed.bytes() } else { placed.element.bytes(placed.columns) * rows };
                let least = if placed.space == Space::Sram { 0 } else { whole };
                found.push(MovedReport { name: placed.name.clone(), read: *read, written: *written, least, distance: 1.0 });
            }
        }
    }
    for tensor in &mut found {
        tensor.distance = distance(tensor.read + tensor.written, tensor.least);
    }
    found
}

/// Rows of a tensor that a kernel touches, where these are not all.
fn touched(program: &Program, kernel: &Kernel, id: TensorId) -> Option<u64> {
    let rows = |linear: &Linear| program.product(linear)[0];
    match kernel {
        Kernel::Norm(norm) if norm.x == id => Some(program.get(norm.out).rows),
        Kernel::Normed(normed) => touched(program, &normed.then, id),
        Kernel::Linear(linear) => match linear.epilogue {
            Epilogue::Rotary { table, .. } if table == Some(id) => Some(rows(linear)),
            _ => linear.out.iter().any(|part| part.tensor == id && program.get(id).role == Role::State).then(|| rows(linear)),
        },
        Kernel::Attention(attention) if attention.state == id => Some(program.batch * keys(program, attention)),
        _ => None,
    }
}

/// Keys that some row sees.
fn keys(program: &Program, attention: &Attention) -> u64 {
    let last = program.queries(attention) - 1;
    attention.keys(last).1 - attention.keys(0).0
}
