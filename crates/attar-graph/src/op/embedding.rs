//! Rows of a table: of tokens, of learned positions, of segments.

use attar_tensor::{Dtype, Encoding};
use candle_core::DType;

use super::{Op, OpDef, no_attributes, no_macs};
use crate::{Error, Fact};

pub(super) static DEF: OpDef = OpDef {
    name: "embedding",
    wants: "tokens [batch, seq] i64 and a table [vocabulary, width]",
    parse: |_| Ok(Op::Embedding),
    attributes: no_attributes,
    infer: |_, facts| match facts {
        [tokens, table] if tokens.encoding == Encoding::Plain(Dtype::I64) && table.dims.len() == 2 => {
            let mut dims = tokens.dims.clone();
            dims.push(table.dims[1].clone());
            Some(Fact::activation(dims))
        }
        _ => None,
    },
    evaluate: |_, operands, context| {
        let tokens = operands[0].tensor()?.to_dtype(DType::U32)?;
        let ids = tokens.flatten_all()?.to_vec1::<u32>()?;
        let rows = if context.mode == crate::Mode::Training {
            operands[1].tensor()?.index_select(&tokens.flatten_all()?, 0)?
        } else {
            operands[1].rows(&ids)?
        };
        let mut dims = tokens.dims().to_vec();
        dims.push(rows.dim(1).map_err(Error::from)?);
        Ok(rows.reshape(dims)?)
    },
    decompose: None,
    several: None,
    macs: no_macs,
};
