//! A schedule with the constants of another program of the same shapes.
//!
//! Searching and placing look at shapes alone. So the schedule of a program without numbers is that of the same program with
//! them: tiles, order, what is kept, and all addresses stay, and only the code is made again, with its constants.

use std::collections::HashMap;

use super::{
    Choice, Schedule,
    path::{Bodies, call, lower},
};
use crate::{
    plan::{Call, Plan},
    program::{GatedMlp, Kernel, Linear, Normed, Program},
};

impl Schedule {
    /// This schedule for `program`; none if that differs in more than its constants from the one that it was made for.
    pub fn rebind(&self, program: &Program) -> Option<Schedule> {
        let named: HashMap<&str, &Kernel> = program.kernels.iter().map(|(name, kernel)| (name.as_str(), kernel)).collect();
        let kernels: usize = self.choices.iter().map(|choice| choice.names().count()).sum();
        if kernels != program.kernels.len() || named.len() != kernels || !self.has_tensors_of(program) {
            return None;
        }
        let mut bodies = Bodies::default();
        let (mut calls, mut choices) = (Vec::new(), Vec::new());
        for (choice, planned) in self.choices.iter().zip(&self.plan.calls) {
            let kernel = choice.kernel_of(&named)?;
            let lowered = lower(program, &kernel, &choice.tiles);
            let Call { offsets, fence_weights, .. } = planned.clone();
            let made = call(choice.name.clone(), bodies.index(&lowered.body), &lowered);
            if lowered.body.buffers != self.plan.bodies[planned.body as usize].buffers || made.operands != planned.operands {
                return None;
            }
            calls.push(Call { offsets, fence_weights, ..made });
            choices.push(Choice { kernel, ..choice.clone() });
        }
        let plan = Plan { bodies: bodies.all, calls, ..self.plan.clone() };
        Some(Schedule { plan, choices })
    }

    fn has_tensors_of(&self, program: &Program) -> bool {
        let placed = self.plan.tensors.iter().map(|t| (&t.name, t.rows, t.columns, t.element, t.role));
        placed.eq(program.tensors.iter().map(|t| (&t.name, t.rows, t.columns, t.element, t.role)))
    }
}

impl Choice {
    /// The names of its kernels.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.name.split(" + ")
    }

    /// Its kernel, of kernels by their names: joined as it was.
    fn kernel_of(&self, named: &HashMap<&str, &Kernel>) -> Option<Kernel> {
        let mut parts = self.names().map(|name| named.get(name).copied());
        let mut next = || parts.next().flatten();
        let norm = match &self.kernel {
            Kernel::Normed(_) => match next()? {
                Kernel::Norm(norm) => Some(norm.clone()),
                _ => return None,
            },
            _ => None,
        };
        let core = match self.kernel.core() {
            Kernel::GatedMlp(_) => Kernel::GatedMlp(GatedMlp { gated: linear(next()?)?, down: linear(next()?)? }),
            _ => next()?.clone(),
        };
        Some(match norm {
            Some(norm) => Kernel::Normed(Normed { norm, then: Box::new(core) }),
            None => core,
        })
    }
}

fn linear(kernel: &Kernel) -> Option<Linear> {
    match kernel {
        Kernel::Linear(linear) => Some(linear.clone()),
        _ => None,
    }
}
