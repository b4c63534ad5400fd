//! What is looked up by tokens and positions: rows of embeddings, cosines and sines.
//!
//! NPUs of microcontrollers look nothing up: there, callers do it, from tables beside the model.

use attar_graph::{Node, Op, ValueId, op::Rope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Emission, Field, Grid, ops::named};
use crate::{
    Result,
    litert::schema::{ADD_16, Element, GATHER_16, SLICE, Scales},
};

/// Who looks rows of tables up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Lookups {
    /// The model, by token ids and positions.
    #[default]
    Inside,
    /// The caller, who gives rows of the tables beside the model.
    Outside,
}

/// The file that lists what callers look up.
pub(in crate::litert) const TABLES: &str = "tables.json";

/// Behind the name of a weight whose rows are stored for lookups.
pub(super) const ROWS: &str = "/rows";

/// A table beside the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::litert) struct Lookup {
    /// The input that takes its rows.
    pub(in crate::litert) input: String,
    /// What its rows are looked up by.
    pub(in crate::litert) index: &'static str,
    pub(in crate::litert) rows: usize,
    pub(in crate::litert) columns: usize,
    /// What a step of its int16 codes is.
    pub(in crate::litert) scale: f32,
    /// The weight that it is made of, or the rotation with the sine's half-signs.
    #[serde(skip)]
    pub(in crate::litert) of: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::litert) enum Content {
    /// A stored weight, by its number.
    Weight(usize),
    /// Cosines or sines.
    Rotation(Rope, bool),
}

pub(super) fn embedding(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let grid = e.wanted(node, grid)?;
    let (model, tokens) = (e.model, e.call.tokens);
    let index = model.graph.get(node.inputs[0]).name.clone();
    let at = model.of[&(node.outputs[0], 1)];
    let (rows, width) = (model.stored[at].dims[0], model.stored[at].dims[1]);
    let scale = model.stored[at].fixed[0];
    let found = if index == "positions" && model.caches.is_empty() {
        // A text has all positions from 0 on.
        if tokens > rows {
            return Err(e.refuse(node, format!("{rows} positions"), "a position for each token: a smaller `tokens`"));
        }
        let (table, begin, size) = (e.stored(node, 1)?, e.ints(&[0, 0]), e.ints(&[tokens, width]));
        let first = e.codes(format!("{name}/first"), SLICE, &[table, begin, size], vec![], &[tokens, width], Grid::wide(scale));
        e.reshape(named(name, "rows", grid), first, &[1, tokens, width])
    } else if model.lookups == super::Lookups::Outside {
        let (input, index) = match index.as_str() {
            "positions" => ("position_embeddings", "input_pos"),
            "token_types" => ("token_type_embeddings", "token_type_ids"),
            _ if model.caches.is_empty() => ("embeddings", "input_ids"),
            _ => ("embeddings", "tokens"),
        };
        e.rows(Lookup { input: input.into(), index, rows, columns: width, scale, of: Content::Weight(at) }, &[1, tokens, width])
    } else {
        let (table, ids) = (e.stored(node, 1)?, e.ids(node.inputs[0]));
        e.codes(
            named(name, "rows", grid),
            GATHER_16,
            &[table, ids],
            vec![(0, Field::I32(0))],
            &[1, tokens, width],
            Grid::wide(scale),
        )
    };
    Ok(e.to(name, found, grid))
}

/// `x cos + exchanged(x) sin`, where `exchanged` exchanges the halves; the sine of the first one is negative.
pub(super) fn rope(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Rope(rope) = &node.op else { unreachable!("the table is right") };
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    let x = e.wide(x);
    let head = e.dims(x)[3];
    let [cos, sin] = e.angles(node, rope, head)?;
    let [low, high] = [0, head / 2].map(|start| e.part(format!("{name}/half.{start}"), x, start, head / 2));
    let exchanged = e.join(format!("{name}/exchanged"), &[high, low]);
    let turned = Grid::wide(e.grid(x).scale * rope.magnitude());
    let straight = e.product(format!("{name}/straight"), x, cos, turned);
    let crossed = e.product(format!("{name}/crossed"), exchanged, sin, turned);
    let sum = e.pair(ADD_16, named(name, "sum", grid), straight, crossed, grid.widened());
    Ok(e.to(name, sum, grid))
}

impl Emission<'_> {
    /// What callers give in every call, as far as no operator asks for more.
    pub(super) fn declare_inputs(&mut self) {
        if self.model.lookups == super::Lookups::Inside {
            for id in self.model.graph.inputs() {
                self.ids(*id);
            }
        }
    }

    /// Ids of tokens, positions or kinds of tokens.
    fn ids(&mut self, input: ValueId) -> i32 {
        let (text, tokens) = (self.model.caches.is_empty(), self.call.tokens);
        let (name, dims) = match (self.model.graph.get(input).name.as_str(), text) {
            // Known without being given.
            ("positions", true) => return -1,
            ("positions", false) => ("input_pos", vec![tokens]),
            ("token_types", _) => ("token_type_ids", vec![1, tokens]),
            (_, true) => ("input_ids", vec![1, tokens]),
            (_, false) => ("tokens", vec![1, tokens]),
        };
        self.made.get(name).copied().unwrap_or_else(|| self.input(name, Element::I32, &dims))
    }

    /// Rows that the caller looks up.
    fn rows(&mut self, lookup: Lookup, dims: &[usize]) -> i32 {
        if let Some(made) = self.made.get(&lookup.input) {
            return *made;
        }
        let made = self.input(&lookup.input, Element::I16, dims);
        self.scale(made, Some(Scales::One(Grid::wide(lookup.scale))));
        self.tables.push(lookup);
        made
    }

    /// Cosines, and sines whose first half is negative, `[1, 1, tokens, head]`, once for each kind of rope.
    fn angles(&mut self, node: &Node, rope: &Rope, head: usize) -> Result<[i32; 2]> {
        if rope.longest_short().is_some_and(|longest| longest < self.call.cache) {
            return Err(self.refuse(
                node,
                "of other frequencies in long texts",
                "one list of frequencies: set a shorter `context`",
            ));
        }
        let (positions, tokens) = (self.call.cache, self.call.tokens);
        let key = format!("rope/{rope:?}/{head}");
        let kind = match self.ropes.iter().position(|known| *known == key) {
            Some(kind) => kind,
            None => {
                self.ropes.push(key);
                self.ropes.len() - 1
            }
        };
        let suffix = if kind == 0 { String::new() } else { format!("_{kind}") };
        let mut both = [0; 2];
        for (sine, to) in both.iter_mut().enumerate() {
            let input = format!("pos_emb_{}{suffix}", ["cos", "sin"][sine]);
            let scale = rope.magnitude() / 32767.0;
            let of = Content::Rotation(rope.clone(), sine == 1);
            let lookup = Lookup { input: input.clone(), index: "input_pos", rows: positions, columns: head, scale, of };
            *to = if self.model.lookups == super::Lookups::Outside {
                self.rows(lookup, &[1, 1, tokens, head])
            } else if let Some(made) = self.made.get(&input) {
                *made
            } else {
                let table = self.constant_codes(&format!("{input}/table"), &[positions, head], &rotation(&lookup), scale);
                let ids = self.made["input_pos"];
                let options = vec![(0, Field::I32(0))];
                let rows =
                    self.codes(format!("{input}/rows"), GATHER_16, &[table, ids], options, &[tokens, head], Grid::wide(scale));
                let made = self.reshape(input.clone(), rows, &[1, 1, tokens, head]);
                self.made.insert(input, made);
                made
            };
        }
        Ok(both)
    }
}

/// The codes of a table of cosines or sines.
pub(in crate::litert) fn rotation(lookup: &Lookup) -> Vec<i16> {
    let Content::Rotation(rope, sine) = &lookup.of else { return Vec::new() };
    let (head, mut codes) = (lookup.columns, Vec::with_capacity(lookup.rows * lookup.columns));
    let frequencies = rope.frequencies_of(head, 0);
    let code = |value: f32| (f64::from(value) * 32767.0).round() as i16;
    for position in 0..lookup.rows {
        let angles = || frequencies.iter().map(|frequency| position as f32 * frequency);
        if *sine {
            codes.extend(angles().map(|angle| code(-angle.sin())));
            codes.extend(angles().map(|angle| code(angle.sin())));
        } else {
            codes.extend(angles().map(|angle| code(angle.cos())));
            codes.extend(angles().map(|angle| code(angle.cos())));
        }
    }
    codes
}
