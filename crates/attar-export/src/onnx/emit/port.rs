//! Inputs and outputs, under the names that runtimes know.

use std::collections::HashMap;

use attar_graph::{Dim, Graph, Node, Op, ValueId};
use attar_tensor::{Dtype, Encoding};
use onnx_protobuf::{GraphProto, ValueInfoProto};

use super::{Element, Emission, Emitted, MASK};
use crate::{
    Error, Port, Result,
    onnx::{Fixed, proto},
};

impl Emission<'_> {
    pub(super) fn declare_inputs(&mut self) -> Result<()> {
        let graph = self.graph;
        for id in graph.inputs() {
            let value = graph.get(*id);
            if value.name == "positions" && self.counts_positions(*id) {
                continue;
            }
            let name = input_name(&value.name).to_owned();
            self.inputs.push(self.port(*id, &name)?);
            self.names.insert(*id, name);
        }
        if let Some(node) = first_attention(graph) {
            let batch = dim(&graph.fact(node.inputs[0]).dims[0]);
            // Without caches there is nothing before the tokens of a call.
            let keys = if self.caches.is_empty() { "sequence_length" } else { "total_sequence_length" };
            let port = Port { name: MASK.into(), dims: vec![batch, keys.into()], dtype: "i64".into() };
            self.inputs.insert(1.min(self.inputs.len()), (port, Element::I64));
        }
        let mut caches: Vec<_> = self.caches.iter().map(|(id, place)| (*place, *id)).collect();
        caches.sort();
        for ((layer, role), id) in caches {
            let (mut port, element) = self.port(id, &format!("past_key_values.{layer}.{role}"))?;
            port.dims[2] = "past_sequence_length".into();
            self.inputs.push((port, element));
        }
        Ok(())
    }

    /// Whether padding is told: where nothing attends, nothing asks.
    pub(super) fn has_mask(&self) -> bool {
        first_attention(self.graph).is_some()
    }

    pub(super) fn declare_outputs(&mut self) -> Result<()> {
        for id in self.graph.outputs() {
            let (mut port, element) = self.port(*id, &self.names[id])?;
            if self.last_only() == Some(*id) {
                port.dims[1] = "1".into();
            }
            self.outputs.push((port, element));
        }
        let mut caches: Vec<_> = self.caches.iter().map(|(id, place)| (*place, *id)).collect();
        caches.sort();
        for (_, id) in caches {
            let port = self.port(id, &self.names[&id])?;
            self.outputs.push(port);
        }
        Ok(())
    }

    fn port(&self, id: ValueId, name: &str) -> Result<(Port, Element)> {
        let value = self.graph.get(id);
        let (element, dtype) = match value.fact.encoding {
            Encoding::Plain(dtype @ (Dtype::F32 | Dtype::I64)) => (Element::of(dtype).unwrap_or(Element::F32), dtype),
            other => {
                return Err(Error::Port {
                    name: value.name.clone(),
                    found: other.to_string(),
                    target: "onnx",
                    wanted: "f32 and i64",
                });
            }
        };
        let dims = value.fact.dims.iter().map(dim).collect();
        Ok((Port { name: name.into(), dims, dtype: dtype.to_string() }, element))
    }

    pub(super) fn finish(mut self, data_file: &str) -> Emitted {
        if let Some(Fixed { tokens, past }) = self.purpose.fixed {
            let sizes = HashMap::from([
                ("batch_size", 1),
                ("sequence_length", tokens),
                ("past_sequence_length", past),
                ("total_sequence_length", past + tokens),
            ]);
            for dim in self.inputs.iter_mut().chain(&mut self.outputs).flat_map(|(port, _)| &mut port.dims) {
                if let Some(size) = sizes.get(dim.as_str()) {
                    *dim = size.to_string();
                }
            }
        }
        let apart = self.weights.stored.iter().filter(|stored| stored.packed.is_none());
        let apart = apart.flat_map(|s| s.parts.iter().chain(s.views.iter().map(|(_, view)| view)));
        let parts = apart.chain(self.weights.packs.iter().flat_map(|pack| &pack.parts));
        let external = parts.map(|p| proto::external(&p.name, p.element, &p.dims, data_file, p.offset, p.bytes()));
        let initializers = external.chain(std::mem::take(&mut self.constants)).collect();
        let ports = |all: &[(Port, Element)]| -> Vec<ValueInfoProto> {
            all.iter().map(|(port, element)| proto::port(&port.name, *element, &port.dims)).collect()
        };
        let graph = GraphProto {
            name: self.graph.name().into(),
            node: self.nodes,
            initializer: initializers,
            input: ports(&self.inputs),
            output: ports(&self.outputs),
            ..Default::default()
        };
        let plain = |all: Vec<(Port, Element)>| all.into_iter().map(|(port, _)| port).collect();
        Emitted { graph, weights: self.weights, inputs: plain(self.inputs), outputs: plain(self.outputs) }
    }
}

/// The name that runtimes know an input of a graph by.
fn input_name(name: &str) -> &str {
    match name {
        "tokens" => "input_ids",
        "positions" => "position_ids",
        "token_types" => "token_type_ids",
        other => other,
    }
}

fn first_attention(graph: &Graph) -> Option<&Node> {
    graph.nodes().iter().find(|node| matches!(node.op, Op::Attention(_)))
}

/// Symbols under the names that runtimes know.
fn dim(dim: &Dim) -> String {
    match dim.to_string().as_str() {
        "batch" => "batch_size".into(),
        "seq" => "sequence_length".into(),
        "past+seq" => "total_sequence_length".into(),
        other => other.into(),
    }
}
