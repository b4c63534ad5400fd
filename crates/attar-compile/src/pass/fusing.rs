//! Turns groups of nodes into fused nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use attar_graph::{
    Graph, Node, Op, Rewriting, ValueId,
    op::{Fused, FusedKind},
};

use super::{Changes, Pass, view::View};
use crate::{Error, Result};

/// A pass that makes groups of nodes one.
pub(super) struct Fusing {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Groups in the order of their last nodes. Of groups that overlap, the first is taken.
    pub(super) groups: fn(&View<'_>) -> Vec<Group>,
}

/// Nodes of one block that become one.
pub(super) struct Group {
    pub(super) kind: FusedKind,
    pub(super) nodes: BTreeSet<usize>,
    /// Results of the group, concatenated along the last dimension. Empty: its only result is that of the last node.
    pub(super) packed: Vec<ValueId>,
}

impl Group {
    /// Of which one value leaves.
    pub(super) fn of(kind: FusedKind, nodes: impl IntoIterator<Item = usize>) -> Group {
        Group { kind, nodes: nodes.into_iter().collect(), packed: Vec::new() }
    }

    /// Position of the fused node: after everything that it reads, before everything that reads it.
    fn place(&self) -> usize {
        let place = if self.packed.is_empty() { self.nodes.last() } else { self.nodes.first() };
        *place.expect("a group has nodes")
    }

    /// Whether all that a packed group reads is made before its first node, and none of its values is returned: those
    /// lose their names.
    fn can_be_packed(&self, view: &View<'_>) -> bool {
        let inputs = || self.nodes.iter().flat_map(|at| &view.node(*at).inputs);
        let outside = inputs().filter_map(|id| view.maker(*id)).filter(|maker| !self.nodes.contains(maker));
        outside.into_iter().all(|maker| maker < self.place()) && !self.packed.iter().any(|id| view.is_returned(*id))
    }
}

impl Pass for Fusing {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        let (mut graph, mut changes) = (graph.clone(), Changes::new());
        loop {
            let groups = disjoint((self.groups)(&View::new(&graph)), &graph);
            if groups.is_empty() {
                return Ok((graph, changes));
            }
            let fused = fuse(&graph, &groups, &mut changes);
            graph = fused.map_err(|source| Error::Pass { pass: self.name, source })?;
        }
    }
}

/// The groups that can be, none of which overlaps with another, by the place where each stands.
fn disjoint(groups: Vec<Group>, graph: &Graph) -> BTreeMap<usize, Group> {
    let view = View::new(graph);
    let mut taken = HashSet::new();
    let mut all = BTreeMap::new();
    for group in groups {
        let free = group.nodes.iter().all(|at| !taken.contains(at));
        if free && (group.packed.is_empty() || group.can_be_packed(&view)) {
            taken.extend(group.nodes.iter().copied());
            all.insert(group.place(), group);
        }
    }
    all
}

fn fuse(graph: &Graph, groups: &BTreeMap<usize, Group>, changes: &mut Changes) -> attar_graph::Result<Graph> {
    let members: HashSet<usize> = groups.values().flat_map(|group| group.nodes.iter().copied()).collect();
    let mut at = 0;
    graph.rewrite(&mut |copy, node| {
        match groups.get(&at) {
            Some(group) => changes.push(Fusion::new(graph, group).add(copy)?),
            None if members.contains(&at) => {}
            None => drop(copy.keep(node)?),
        }
        at += 1;
        Ok(())
    })
}

/// A group on its way to one node.
struct Fusion<'g> {
    graph: &'g Graph,
    group: &'g Group,
    nodes: Vec<&'g Node>,
    /// What the group reads from outside, in order of first use.
    operands: Vec<ValueId>,
}

impl<'g> Fusion<'g> {
    fn new(graph: &'g Graph, group: &'g Group) -> Fusion<'g> {
        let nodes: Vec<&Node> = group.nodes.iter().map(|at| &graph.nodes()[*at]).collect();
        let mut operands: Vec<ValueId> = Vec::new();
        for id in nodes.iter().flat_map(|node| &node.inputs) {
            if !nodes.iter().any(|node| node.outputs.contains(id)) && !operands.contains(id) {
                operands.push(*id);
            }
        }
        Fusion { graph, group, nodes, operands }
    }

    fn name(&self, id: ValueId) -> &'g str {
        &self.graph.get(id).name
    }

    /// Adds the fused node, and what unpacks its value; its name.
    fn add(&self, copy: &mut Rewriting<'_>) -> attar_graph::Result<String> {
        let (mut body, ids) = self.body()?;
        let last = self.nodes.last().expect("a group has nodes").output();
        let name = match self.group.packed.is_empty() {
            true => self.name(last).to_owned(),
            false => self.pack(&mut body, &ids, copy.graph())?,
        };
        let output = body.nodes().last().expect("a group has nodes").output();
        body.output(output);
        let operands = copy.values(&self.operands)?;
        let fused = copy.graph().node(&name, Op::Fused(Fused::new(self.group.kind, body)?), &operands)?;
        match self.group.packed.is_empty() {
            true => copy.put(last, fused),
            false => self.unpack(copy, fused)?,
        }
        Ok(name)
    }

    /// The nodes of the group over inputs of their own.
    fn body(&self) -> attar_graph::Result<(Graph, HashMap<ValueId, ValueId>)> {
        let mut body = Graph::new("fused");
        let mut taken: HashSet<String> = self.nodes.iter().map(|node| self.name(node.output()).to_owned()).collect();
        let mut ids = HashMap::new();
        for id in &self.operands {
            let called = local_name(self.name(*id), |name| !taken.contains(name));
            ids.insert(*id, body.input(&called, self.graph.fact(*id).clone())?);
            taken.insert(called);
        }
        for node in &self.nodes {
            let inputs: Vec<ValueId> = node.inputs.iter().map(|id| ids[id]).collect();
            ids.insert(node.output(), body.node(self.name(node.output()), node.op.clone(), &inputs)?);
        }
        Ok((body, ids))
    }

    /// Adds the nodes that concatenate the packed values; returns the name of the concatenation.
    fn pack(&self, body: &mut Graph, ids: &HashMap<ValueId, ValueId>, to: &Graph) -> attar_graph::Result<String> {
        let mut flat = Vec::new();
        for id in &self.group.packed {
            flat.push(match self.heads(*id) {
                Some(_) => body.node(&self.fresh(&format!("{}.merged", self.name(*id)), to), Op::MergeHeads, &[ids[id]])?,
                None => ids[id],
            });
        }
        let first = self.name(self.group.packed[0]);
        let scope = first.rfind('.').map_or("", |dot| &first[..=dot]);
        let name = self.fresh(&format!("{scope}{}", self.group.kind.name()), to);
        body.node(&name, Op::Concat, &flat)?;
        Ok(name)
    }

    /// Adds the nodes that slice the packed values out of `packed` again.
    fn unpack(&self, copy: &mut Rewriting<'_>, packed: ValueId) -> attar_graph::Result<()> {
        let mut start = 0;
        for id in &self.group.packed {
            let (name, heads) = (self.name(*id), self.heads(*id));
            let width = self.graph.fact(*id).width().expect("what is multiplied has a width");
            let length = width * heads.unwrap_or(1);
            let to = copy.graph();
            let mut part = to.node(&self.fresh(&format!("{name}.slice"), to), Op::Slice { start, length }, &[packed])?;
            if let Some(heads) = heads {
                part = to.node(&self.fresh(&format!("{name}.split"), to), Op::SplitHeads { heads }, &[part])?;
            }
            copy.put(*id, part);
            start += length;
        }
        Ok(())
    }

    /// How many heads a value is split into, if it is.
    fn heads(&self, id: ValueId) -> Option<usize> {
        let dims = &self.graph.fact(id).dims;
        (dims.len() == 4).then(|| dims[1].constant().expect("heads are counted by the op that splits them"))
    }

    /// `name`, or something like it that neither graph has.
    fn fresh(&self, name: &str, to: &Graph) -> String {
        let mut name = name.to_owned();
        while self.graph.is_taken(&name) || to.is_taken(&name) {
            name.push('_');
        }
        name
    }
}

/// What a body calls an operand: the end of its name, as little of it as is `free`.
fn local_name(name: &str, free: impl Fn(&str) -> bool) -> String {
    let is_word = |word: &str| {
        word != "weight"
            && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "_./+-".contains(c))
    };
    let ends = name.rmatch_indices('.').map(|(dot, _)| &name[dot + 1..]).chain([name]);
    let short = ends.into_iter().find(|end| is_word(end) && free(end)).map(Into::into);
    short.unwrap_or_else(|| (0..).map(|n| format!("x{n}")).find(|name| free(name)).expect("there are more numbers than names"))
}
