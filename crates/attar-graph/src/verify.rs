//! The rules of a graph, checked from scratch: nothing that the builder did is trusted.

use std::collections::HashSet;

use crate::{Error, Fact, Graph, Origin, Result, Value, error::Problem};
use attar_tensor::Source;

impl Graph {
    /// Checks that every value is defined before it is used, that every fact is the one that its op infers, that blocks are
    /// contiguous and have distinct names, and that something is returned.
    pub fn verify(&self) -> Result<()> {
        let invalid = |problem| Err(Error::Invalid(problem));
        let mut defined: HashSet<_> =
            self.values().filter(|(_, v)| !matches!(v.origin, Origin::Node(_))).map(|(id, _)| id).collect();
        let mut names = HashSet::new();
        let outer = self.values().map(|(_, value)| value.name.as_str());
        let inner = self.nodes().iter().filter_map(|node| node.op.fused()).flat_map(|fused| fused.inner_names());
        if let Some(name) = outer.chain(inner).find(|name| !names.insert(*name)) {
            return invalid(Problem::Twice { name: name.into() });
        }
        let mut blocks = HashSet::new();
        if let Some(block) = self.blocks().find(|id| !blocks.insert(self.block_name(*id))) {
            return invalid(Problem::Scattered { block: self.block_name(block).into() });
        }
        let mut block = None;
        for node in self.nodes() {
            if block.is_some_and(|last| node.block < last) {
                return invalid(Problem::Scattered { block: self.block_name(node.block).into() });
            }
            block = Some(node.block);
            if let Some(id) = node.inputs.iter().find(|id| !defined.contains(id)) {
                return invalid(Problem::Order { name: self.get(*id).name.clone() });
            }
            let facts: Vec<&Fact> = node.inputs.iter().map(|id| self.fact(*id)).collect();
            let outputs: Vec<&Value> = node.outputs.iter().map(|id| self.get(*id)).collect();
            let name = outputs.first().map_or("", |output| output.name.as_str());
            if let Some(fused) = node.op.fused().filter(|fused| fused.name() != name) {
                let (name, found) = (name.into(), fused.name().into());
                return invalid(Problem::BodyName { name, found });
            }
            let wanted = node.op.infer(name, &facts)?;
            if wanted.len() != outputs.len() {
                let (op, found) = (node.op.def().name, outputs.len());
                return invalid(Problem::Results { op, found, wanted: wanted.len() });
            }
            for ((id, output), wanted) in node.outputs.iter().zip(outputs).zip(wanted) {
                if wanted != output.fact {
                    let (found, wanted) = (output.fact.to_string(), wanted.to_string());
                    return invalid(Problem::Fact { name: output.name.clone(), found, wanted });
                }
                if !defined.insert(*id) {
                    return invalid(Problem::Twice { name: output.name.clone() });
                }
            }
        }
        if self.outputs().is_empty() {
            return invalid(Problem::NoOutput);
        }
        for id in self.outputs() {
            let Value { name, origin, .. } = self.get(*id);
            if matches!(origin, Origin::Weight(_)) {
                return invalid(Problem::ConstantOutput { name: name.clone() });
            }
            if !defined.contains(id) {
                return invalid(Problem::Order { name: name.clone() });
            }
        }
        Ok(())
    }

    /// Checks that `source` has every weight, with the shape and encoding that the graph states.
    pub fn verify_weights(&self, source: &dyn Source) -> Result<()> {
        for (_, value, expr) in self.weights() {
            let info = expr.info(source)?;
            let wanted = value.fact.constant_dims().unwrap_or_default();
            if wanted != info.dims || !expr.fits(source)? {
                let (weight, stored) = (value.name.clone(), expr.to_string());
                return Err(Error::Shape { weight, stored, wanted, found: info.dims });
            }
            if value.fact.encoding != info.encoding {
                let (found, wanted) = (info.encoding.to_string(), value.fact.encoding.to_string());
                return Err(Error::Invalid(Problem::Fact { name: value.name.clone(), found, wanted }));
            }
        }
        Ok(())
    }
}
