//! The order of kernels with the lowest peak of live activation bytes.

use std::{borrow::Cow, collections::HashMap};

use crate::{
    Program, Result, TensorId,
    memory::{Op, Ops, OrderEffort},
    program::Role,
};

/// The program in an order with a lower peak of live bytes, or as it is if there is none.
///
/// # Errors
/// If kernels depend on each other.
pub(super) fn least_live(program: &Program) -> Result<Cow<'_, Program>> {
    let Some(ops) = ops(program) else { return Ok(Cow::Borrowed(program)) };
    let given: Vec<usize> = (0..ops.ops.len()).collect();
    // Ops write before they read: a state that is read first, for the next run, keeps the order as it is.
    let Ok(peak) = ops.peak(&given) else { return Ok(Cow::Borrowed(program)) };
    let found = ops.order(OrderEffort::default())?;
    if peak <= found.peak {
        return Ok(Cow::Borrowed(program));
    }
    let kernels = found.order.iter().map(|at| program.kernels[*at].clone()).collect();
    Ok(Cow::Owned(Program { tensors: program.tensors.clone(), kernels, batch: program.batch }))
}

/// Kernels and the tensors that they pass to each other. States and outputs have memory of their own: they only constrain the
/// order. `None` if two kernels write parts of one tensor.
fn ops(program: &Program) -> Option<Ops> {
    let mut buffers: HashMap<TensorId, usize> = HashMap::new();
    let mut sizes = Vec::new();
    let mut kept = Vec::new();
    for id in program.kernels.iter().flat_map(|(_, kernel)| kernel.writes()) {
        let role = program.get(id).role;
        if buffers.insert(id, sizes.len()).is_some() {
            return None;
        }
        if role != Role::Scratch {
            kept.push(sizes.len());
        }
        sizes.push(if role == Role::Scratch { program.get(id).bytes().max(1) } else { 1 });
    }
    let known = |ids: Vec<TensorId>| ids.iter().filter_map(|id| buffers.get(id).copied()).collect();
    let ops =
        program.kernels.iter().map(|(_, kernel)| Op { reads: known(kernel.reads()), writes: known(kernel.writes()), scratch: 0 });
    Some(Ops { sizes, ops: ops.collect(), kept })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Element,
        program::{Kernel, Norm},
    };

    fn norm(program: &mut Program, name: &str, x: TensorId, rows: u64, role: Role) -> TensorId {
        let columns = program.get(x).columns;
        let gains = program.tensor(format!("{name}.gains"), [1, columns], Element::INT32, Role::Constant);
        let out = program.tensor(name, [rows, columns], Element::INT16, role);
        program.kernel(
            name,
            Kernel::Norm(Norm { x, row: 0, gains, out, epsilon: 1, gain_shift: 0, centered: false, residual: None }),
        );
        out
    }

    /// Two branches that each grow large and end small: one after the other, and not side by side.
    #[test]
    fn branches_run_one_after_the_other() {
        let mut program = Program::default();
        let x = program.tensor("x", [4, 8], Element::INT16, Role::Input);
        let wide = ["a", "b"].map(|name| norm(&mut program, name, x, 400, Role::Scratch));
        let narrow = [("c", wide[0]), ("d", wide[1])].map(|(name, from)| norm(&mut program, name, from, 4, Role::Scratch));
        narrow.iter().zip(["e", "f"]).for_each(|(from, name)| {
            norm(&mut program, name, *from, 4, Role::Output);
        });
        let ordered = least_live(&program).unwrap();
        let names: Vec<&str> = ordered.kernels.iter().map(|(name, _)| name.as_str()).collect();
        let at = |name: &str| names.iter().position(|other| *other == name).unwrap();
        assert!(at("c") < at("b") || at("d") < at("a"), "{names:?}");
        assert_eq!(names.len(), 6);
    }

    #[test]
    fn a_chain_stays_as_it_is() {
        let mut program = Program::default();
        let mut at = program.tensor("x", [4, 8], Element::INT16, Role::Input);
        for name in ["a", "b", "c"] {
            at = norm(&mut program, name, at, 4, Role::Scratch);
        }
        assert!(matches!(least_live(&program), Ok(Cow::Borrowed(_))));
    }
}
