//! GELU (Hendrycks & Gimpel 2016) in its two forms, and the error function.

use super::{Op, OpDef, no_attributes, no_macs, unary};
use crate::{Mode, kernel};

pub(super) static GELU: OpDef = OpDef {
    name: "gelu",
    wants: "x",
    parse: |_| Ok(Op::Gelu),
    attributes: no_attributes,
    infer: |_, facts| unary(facts),
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        Ok(match context.mode {
            Mode::Inference => kernel::gelu(&x)?,
            Mode::Training => x.gelu_erf()?,
        })
    },
    decompose: Some(|graph, name, _, inputs| {
        let [x] = inputs else { unreachable!("the operands were checked") };
        let part = |suffix: &str| format!("{name}.{suffix}");
        let scaled = graph.node(&part("scaled"), Op::Scale { by: std::f64::consts::FRAC_1_SQRT_2 }, &[*x])?;
        let erf = graph.node(&part("erf"), Op::Erf, &[scaled])?;
        let half = graph.node(&part("half"), Op::Scale { by: 0.5 }, &[*x])?;
        let product = graph.node(&part("product"), Op::Mul, &[half, erf])?;
        graph.node(name, Op::Add, &[half, product])
    }),
    several: None,
    macs: no_macs,
};

pub(super) static GELU_TANH: OpDef = OpDef {
    name: "gelu_tanh",
    wants: "x",
    parse: |_| Ok(Op::GeluTanh),
    attributes: no_attributes,
    infer: |_, facts| unary(facts),
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        Ok(match context.mode {
            Mode::Inference => kernel::gelu_tanh(&x)?,
            Mode::Training => x.gelu()?,
        })
    },
    decompose: Some(|graph, name, _, inputs| {
        let [x] = inputs else { unreachable!("the operands were checked") };
        let part = |suffix: &str| format!("{name}.{suffix}");
        let square = graph.node(&part("square"), Op::Mul, &[*x, *x])?;
        let cube = graph.node(&part("cube"), Op::Mul, &[square, *x])?;
        let cubic = graph.node(&part("cubic"), Op::Scale { by: 0.044715 }, &[cube])?;
        let sum = graph.node(&part("sum"), Op::Add, &[*x, cubic])?;
        let by = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        let scaled = graph.node(&part("scaled"), Op::Scale { by }, &[sum])?;
        let tanh = graph.node(&part("tanh"), Op::Tanh, &[scaled])?;
        let half = graph.node(&part("half"), Op::Scale { by: 0.5 }, &[*x])?;
        let product = graph.node(&part("product"), Op::Mul, &[half, tanh])?;
        graph.node(name, Op::Add, &[half, product])
    }),
    several: None,
    macs: no_macs,
};

pub(super) static ERF: OpDef = OpDef {
    name: "erf",
    wants: "x",
    parse: |_| Ok(Op::Erf),
    attributes: no_attributes,
    infer: |_, facts| unary(facts),
    evaluate: |_, operands, context| {
        let x = operands[0].tensor()?;
        Ok(match context.mode {
            Mode::Inference => kernel::erf(&x)?,
            Mode::Training => x.erf()?,
        })
    },
    decompose: None,
    several: None,
    macs: no_macs,
};
