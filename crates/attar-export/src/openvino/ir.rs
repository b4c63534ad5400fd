//! OpenVINO's intermediate representation, version 11: layers and edges in XML, numbers in a file beside it.
//!
//! Follows what OpenVINO 2026.4 writes and reads. Only parameters and constants say their shapes: the reader infers all others.

use std::fmt::Write as _;

/// An element type: its name in attributes, on ports, and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element(pub(super) &'static str, &'static str, pub(super) u64);

impl Element {
    pub(super) const F32: Element = Element("f32", "FP32", 32);
    pub(super) const F16: Element = Element("f16", "FP16", 16);
    pub(super) const BF16: Element = Element("bf16", "BF16", 16);
    pub(super) const I64: Element = Element("i64", "I64", 64);
    pub(super) const I32: Element = Element("i32", "I32", 32);
    pub(super) const BOOL: Element = Element("boolean", "BOOL", 8);
    pub(super) const STRING: Element = Element("string", "STRING", 0);
    pub(super) const I8: Element = Element("i8", "I8", 8);
    pub(super) const U8: Element = Element("u8", "U8", 8);
    pub(super) const I4: Element = Element("i4", "I4", 4);
    pub(super) const U4: Element = Element("u4", "U4", 4);
    pub(super) const NF4: Element = Element("nf4", "NF4", 4);
    pub(super) const F8_E4M3: Element = Element("f8e4m3", "F8E4M3", 8);
    pub(super) const F8_E5M2: Element = Element("f8e5m2", "F8E5M2", 8);

    /// Bytes of a tensor: elements are packed without gaps, the first in the lowest bits.
    pub(super) fn bytes(self, dims: &[usize]) -> u64 {
        (dims.iter().product::<usize>() as u64 * self.2).div_ceil(8)
    }
}

/// An output of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    layer: usize,
    port: usize,
}

/// What a layer does: its type, and the operator set that defines it; [`EXTENSION`] for those of OpenVINO Tokenizers.
pub(super) type Kind = (&'static str, u8);

/// The operators of OpenVINO Tokenizers.
pub(super) const EXTENSION: u8 = 0;

/// Attributes of a layer, in the order in which they are written.
pub(super) type Data = Vec<(&'static str, String)>;

struct Layer {
    name: String,
    kind: Kind,
    data: Data,
    inputs: Vec<Out>,
    /// Element and name of each output; the name is how callers know it.
    outputs: Vec<(Element, Option<String>)>,
}

/// A model without its numbers.
#[derive(Default)]
pub(super) struct Ir {
    layers: Vec<Layer>,
    /// What runtimes are told apart from the graph.
    pub(super) info: Vec<(&'static str, String)>,
}

impl Ir {
    /// Adds a layer with as many outputs as there are elements.
    pub(super) fn layer(
        &mut self,
        name: impl Into<String>,
        kind: Kind,
        data: Data,
        inputs: &[Out],
        elements: &[Element],
    ) -> Vec<Out> {
        let outputs = elements.iter().map(|element| (*element, None)).collect();
        self.layers.push(Layer { name: name.into(), kind, data, inputs: inputs.to_vec(), outputs });
        (0..elements.len()).map(|port| Out { layer: self.layers.len() - 1, port }).collect()
    }

    pub(super) fn element(&self, out: Out) -> Element {
        self.layers[out.layer].outputs[out.port].0
    }

    /// Names an output for callers.
    pub(super) fn export(&mut self, out: Out, name: &str) {
        self.layers[out.layer].outputs[out.port].1 = Some(name.into());
    }

    /// Changes an attribute of the layer that makes `out`.
    pub(super) fn set(&mut self, out: Out, key: &'static str, value: String) {
        let data = &mut self.layers[out.layer].data;
        data.retain(|(known, _)| *known != key);
        data.push((key, value));
    }

    /// The XML file.
    pub(super) fn xml(&self, name: &str) -> String {
        let mut text = String::from("<?xml version=\"1.0\"?>\n");
        self.write(&mut text, name).expect("a string takes any text");
        text
    }

    fn write(&self, to: &mut String, name: &str) -> std::fmt::Result {
        writeln!(to, "<net name=\"{}\" version=\"11\">\n\t<layers>", escaped(name))?;
        for (id, layer) in self.layers.iter().enumerate() {
            let (kind, version) = layer.kind;
            let version = if version == EXTENSION { "extension".into() } else { format!("opset{version}") };
            writeln!(to, "\t\t<layer id=\"{id}\" name=\"{}\" type=\"{kind}\" version=\"{version}\">", escaped(&layer.name))?;
            if !layer.data.is_empty() {
                to.push_str("\t\t\t<data");
                layer.data.iter().try_for_each(|(key, value)| write!(to, " {key}=\"{}\"", escaped(value)))?;
                to.push_str(" />\n");
            }
            self.write_ports(to, layer)?;
            to.push_str("\t\t</layer>\n");
        }
        to.push_str("\t</layers>\n\t<edges>\n");
        for (id, layer) in self.layers.iter().enumerate() {
            for (port, from) in layer.inputs.iter().enumerate() {
                let from_port = self.layers[from.layer].inputs.len() + from.port;
                let from = from.layer;
                writeln!(
                    to,
                    "\t\t<edge from-layer=\"{from}\" from-port=\"{from_port}\" to-layer=\"{id}\" to-port=\"{port}\" />"
                )?;
            }
        }
        to.push_str("\t</edges>\n");
        if !self.info.is_empty() {
            to.push_str("\t<rt_info>\n");
            self.info.iter().try_for_each(|(key, value)| writeln!(to, "\t\t<{key} value=\"{}\" />", escaped(value)))?;
            to.push_str("\t</rt_info>\n");
        }
        to.push_str("</net>\n");
        Ok(())
    }

    /// Ports are counted over inputs, then outputs.
    fn write_ports(&self, to: &mut String, layer: &Layer) -> std::fmt::Result {
        if !layer.inputs.is_empty() {
            to.push_str("\t\t\t<input>\n");
            for (id, from) in layer.inputs.iter().enumerate() {
                writeln!(to, "\t\t\t\t<port id=\"{id}\" precision=\"{}\" />", self.element(*from).1)?;
            }
            to.push_str("\t\t\t</input>\n");
        }
        if !layer.outputs.is_empty() {
            to.push_str("\t\t\t<output>\n");
            for (id, (element, name)) in layer.outputs.iter().enumerate() {
                let names = name.as_ref().map(|name| format!(" names=\"{}\"", escaped(name))).unwrap_or_default();
                writeln!(to, "\t\t\t\t<port id=\"{}\" precision=\"{}\"{names} />", layer.inputs.len() + id, element.1)?;
            }
            to.push_str("\t\t\t</output>\n");
        }
        Ok(())
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    text.replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_over_inputs_and_outputs() {
        let mut ir = Ir::default();
        let x = ir.layer("x", ("Parameter", 1), vec![("shape", "?".into())], &[], &[Element::F32])[0];
        let parts = ir.layer("a<b", ("Split", 1), vec![], &[x], &[Element::F32; 2]);
        ir.layer("y", ("Result", 1), vec![], &parts[1..], &[]);
        ir.export(parts[1], "half");
        let text = ir.xml("net");
        assert!(
            text.contains("name=\"a&lt;b\"") && text.contains("<port id=\"2\" precision=\"FP32\" names=\"half\" />"),
            "{text}"
        );
        assert!(text.contains("<edge from-layer=\"1\" from-port=\"2\" to-layer=\"2\" to-port=\"0\" />"), "{text}");
    }
}
