//! Linear layers that read the same value: one product of several weights, one below the other, costs less than several.

use attar_graph::{Graph, Node, Op, ValueId};

/// All of them, in running order; most have a single member.
pub(crate) fn families(graph: &Graph) -> Vec<Vec<&Node>> {
    let mut families: Vec<(ValueId, Vec<&Node>)> = Vec::new();
    for node in graph.nodes().iter().filter(|node| node.op == Op::Linear) {
        match families.iter_mut().rev().find(|(input, _)| *input == node.inputs[0]) {
            Some((_, family)) => family.push(node),
            None => families.push((node.inputs[0], vec![node])),
        }
    }
    families.into_iter().map(|(_, family)| family).collect()
}

/// The name of several weights together: `a.b.q`, `a.b.k` as `a.b.q+k`.
pub(crate) fn union(names: &[&str]) -> String {
    let shared = (0..names[0].len()).rev().map(|end| &names[0][..=end]);
    let shared = shared.filter(|prefix| prefix.ends_with('.')).find(|prefix| names.iter().all(|name| name.starts_with(prefix)));
    let shared = shared.unwrap_or_default();
    let rest: Vec<&str> = names.iter().map(|name| &name[shared.len()..]).collect();
    format!("{shared}{}", rest.join("+"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_has_the_common_part_once() {
        assert_eq!(union(&["blocks.0.attention.query", "blocks.0.attention.key"]), "blocks.0.attention.query+key");
        assert_eq!(union(&["gate", "up"]), "gate+up");
    }
}
