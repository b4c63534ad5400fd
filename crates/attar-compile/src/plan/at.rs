//! A plan's run at another position: as many tokens behind fewer.

use super::{Body, Call, Compute, Extent, Plan, Statement};

impl Plan {
    /// The run with `past` tokens before it, which are at most those that it was planned for: everything that is held is smaller or the
    /// same, so places and tiles stay.
    #[must_use]
    pub fn at(&self, past: u64) -> Plan {
        let body = |body: &Body| {
            let mut body = body.clone();
            moved(&mut body.code, past);
            body
        };
        let call = |call: &Call| {
            let mut call = call.clone();
            let moving = call.operands.iter_mut().filter(|operand| operand.position > 0);
            moving.for_each(|operand| operand.row = past * operand.position);
            call
        };
        let (bodies, calls) = (self.bodies.iter().map(body).collect(), self.calls.iter().map(call).collect());
        Plan { bodies, calls, ..self.clone() }
    }
}

fn moved(code: &mut [Statement], to: u64) {
    for statement in code {
        match statement {
            Statement::Loop { extent, body, .. } => {
                match extent {
                    Extent::Count(_) | Extent::Rows { .. } => {}
                    Extent::Keys { past, .. } | Extent::AllKeys { past, .. } => *past = to,
                }
                moved(body, to);
            }
            Statement::Compute(Compute::Attend { attend, .. }) => attend.past = to,
            _ => {}
        }
    }
}
