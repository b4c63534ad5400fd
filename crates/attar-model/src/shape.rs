//! The sizes of a graph, and the configuration that states them.
//!
//! A step may leave fewer channels, heads or blocks than a checkpoint has. What its configuration says is then derived from
//! the graph: [`describe`] sets the keys whose sizes differ, in the architecture's own spelling ([`Keys`]), and leaves
//! everything else, whose meaning no shape tells.

use attar_graph::{Graph, Node, Op};
use serde_json::{Map, Value, json};

use crate::{Architecture, Config, Error, Result, builder::Heads};

/// The sizes of a transformer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of the embedding.
    vocabulary: usize,
    /// Width of the residual stream.
    hidden: usize,
    /// Whether the head is the embedding, if there is a head.
    tied: Option<bool>,
    /// Every block.
    layers: Vec<Layer>,
}

/// The sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layer {
    /// Width inside the MLP.
    inner: usize,
    /// Query heads.
    heads: usize,
    /// Key and value heads.
    key_heads: usize,
    /// Width of a head.
    head: usize,
    /// The last positions that a query sees, or all.
    window: Option<usize>,
}

impl Shape {
    /// Of `blocks` blocks with one set of sizes.
    pub(crate) fn uniform(
        vocabulary: usize,
        tied: Option<bool>,
        blocks: usize,
        heads: &Heads,
        inner: usize,
        window: impl Fn(usize) -> Option<usize>,
    ) -> Shape {
        let layer = Layer { inner, heads: heads.query, key_heads: heads.key, head: heads.width, window: None };
        let layers = (0..blocks).map(|block| Layer { window: window(block), ..layer }).collect();
        Shape { vocabulary, hidden: heads.hidden, tied, layers }
    }

    /// Of `graph`, which an architecture has built or a step has changed.
    fn of(graph: &Graph) -> Result<Shape> {
        let [vocabulary, hidden] = matrix(graph, "embedding")?;
        let expr = |name: &str| graph.weights().find(|(_, value, _)| value.name == name).map(|(.., expr)| expr);
        let tied = expr("lm_head").map(|head| Some(head) == expr("embedding"));
        let blocks = graph.blocks().filter(|block| graph.block_name(*block).starts_with(BLOCKS));
        let layers = blocks.map(|block| {
            let nodes: Vec<&Node> = graph.nodes_of(block).collect();
            Layer::of(graph, graph.block_name(block), &nodes)
        });
        Ok(Shape { vocabulary, hidden, tied, layers: layers.collect::<Result<_>>()? })
    }

    /// The same number of every block.
    fn all(&self, size: impl Fn(&Layer) -> usize) -> Option<usize> {
        let first = size(self.layers.first()?);
        self.layers.iter().all(|layer| size(layer) == first).then_some(first)
    }

    /// Blocks are alike, and heads are such as the architecture can have.
    fn check(&self, keys: &Keys) -> Result<()> {
        let Some(first) = self.layers.first() else { return Err(indescribable("the graph", "no blocks", "at least one")) };
        for (number, layer) in self.layers.iter().enumerate() {
            let block = format!("{BLOCKS}{number}");
            let equal = |what, found: usize, wanted: usize| match found == wanted {
                true => Ok(()),
                false => Err(indescribable(&block, format!("{found} {what}"), format!("{wanted} as in `{BLOCKS}0`"))),
            };
            equal("channels in its MLP", layer.inner, first.inner)?;
            equal("query heads", layer.heads, first.heads)?;
            equal("key and value heads", layer.key_heads, first.key_heads)?;
            equal("columns in a head", layer.head, first.head)?;
        }
        let grouped = keys.key_heads.is_empty() && first.key_heads != first.heads;
        if grouped || first.key_heads == 0 || !first.heads.is_multiple_of(first.key_heads) {
            let found = format!("{} query heads and {} key and value heads", first.heads, first.key_heads);
            let wanted = if grouped { "as many of both" } else { "a multiple of the latter" };
            return Err(indescribable(format!("{BLOCKS}0"), found, wanted));
        }
        if keys.head.is_empty() && first.heads * first.head != self.hidden {
            let found = format!("{} query heads of {} columns", first.heads, first.head);
            return Err(indescribable(format!("{BLOCKS}0"), found, format!("{} columns in all", self.hidden)));
        }
        Ok(())
    }
}

/// What the names of blocks begin with.
const BLOCKS: &str = "blocks.";

impl Layer {
    fn of(graph: &Graph, block: &str, nodes: &[&Node]) -> Result<Layer> {
        let [_, inner] = matrix(graph, &format!("{block}.mlp.down"))?;
        let mut found = Vec::new();
        nodes.iter().for_each(|node| attentions(graph, node, &mut found));
        let [(window, query, key, value)] = found[..] else {
            return Err(indescribable(block, format!("{} attentions", found.len()), "one"));
        };
        if key != value || key[1] != query[1] {
            let found = format!("queries, keys and values of {}, {} and {} columns in a head", query[1], key[1], value[1]);
            return Err(indescribable(block, found, "as many for all, and as many keys as values"));
        }
        Ok(Layer { inner, heads: query[0], key_heads: key[0], head: query[1], window })
    }
}

/// Window of an attention, and heads and their width of its query, key and value.
type Attention = (Option<usize>, [usize; 2], [usize; 2], [usize; 2]);

/// Every attention that `node` is or stands for.
fn attentions(graph: &Graph, node: &Node, found: &mut Vec<Attention>) {
    match &node.op {
        Op::Attention(op) => {
            let heads = |at: usize| {
                let dims = &graph.fact(node.inputs[at]).dims;
                [1, 3].map(|dim| dims.get(dim).and_then(|dim| dim.constant()).unwrap_or(0))
            };
            found.push((op.window, heads(0), heads(1), heads(2)));
        }
        Op::Fused(fused) => fused.body().nodes().iter().for_each(|node| attentions(fused.body(), node, found)),
        _ => {}
    }
}

/// Rows and columns of a weight.
fn matrix(graph: &Graph, name: &str) -> Result<[usize; 2]> {
    let dims = graph.find(name).and_then(|id| graph.fact(id).constant_dims());
    match dims.as_deref() {
        Some([rows, columns]) => Ok([*rows, *columns]),
        _ => Err(indescribable("the graph", format!("no matrix `{name}`"), "one")),
    }
}

/// Where the configurations of an architecture say the sizes of its graph: the key that transformers writes, then other
/// spellings of it. Without spellings the size follows from others. `vocab_size` and `tie_word_embeddings` are spelled so by
/// all.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) blocks: &'static [&'static str],
    pub(crate) hidden: &'static [&'static str],
    pub(crate) inner: &'static [&'static str],
    pub(crate) heads: &'static [&'static str],
    pub(crate) key_heads: &'static [&'static str],
    pub(crate) head: &'static [&'static str],
    /// A list of what each block sees.
    pub(crate) kinds: Option<&'static str>,
}

impl Keys {
    /// Those of the Llama family.
    pub(crate) const LLAMA: Keys =
        Keys { key_heads: &["num_key_value_heads"], head: &["head_dim"], kinds: Some("layer_types"), ..Keys::EQUAL_HEADS };

    /// Those of architectures whose heads divide the residual stream among them.
    pub(crate) const EQUAL_HEADS: Keys = Keys {
        blocks: &["num_hidden_layers"],
        hidden: &["hidden_size"],
        inner: &["intermediate_size"],
        heads: &["num_attention_heads"],
        key_heads: &[],
        head: &[],
        kinds: None,
    };

    /// Every size with its spellings; `None` where blocks differ.
    fn sizes(&self, shape: &Shape) -> [(&'static [&'static str], Option<usize>); 7] {
        [
            (&["vocab_size"], Some(shape.vocabulary)),
            (self.blocks, Some(shape.layers.len())),
            (self.hidden, Some(shape.hidden)),
            (self.inner, shape.all(|layer| layer.inner)),
            (self.heads, shape.all(|layer| layer.heads)),
            (self.key_heads, shape.all(|layer| layer.key_heads)),
            (self.head, shape.all(|layer| layer.head)),
        ]
    }

    /// Makes `config`, which says `said`, if it is known what, say `shape`. What it is silent about stays so if that means the same.
    fn set(&self, config: &mut Map<String, Value>, shape: &Shape, said: Option<&Shape>) {
        let before = said.map(|said| self.sizes(said));
        for (at, (spellings, size)) in self.sizes(shape).into_iter().enumerate() {
            put(config, spellings, size.map(Value::from), before.is_none_or(|before| before[at].1 != size));
        }
        // Silence on the width of a head mostly means a share of the stream.
        if let (Some(heads), Some(head)) = (shape.all(|layer| layer.heads), shape.all(|layer| layer.head)) {
            put(config, self.head, Some(head.into()), heads * head != shape.hidden);
        }
        if let Some(tied) = shape.tied {
            put(config, &["tie_word_embeddings"], Some(tied.into()), said.is_none_or(|said| said.tied != shape.tied));
        }
        let windows = |shape: &Shape| shape.layers.iter().map(|layer| layer.window.is_some()).collect::<Vec<bool>>();
        let (kinds, said) = (windows(shape), said.map(windows));
        let differs = said.is_some_and(|said| said.len() == kinds.len() && said != kinds);
        let kind = |window: bool| if window { "sliding_attention" } else { "full_attention" };
        let kinds: Vec<&str> = kinds.into_iter().map(kind).collect();
        put(config, self.kinds.as_slice(), Some(json!(kinds)), differs);
    }
}

/// Sets a key in every spelling that is there, or in the first if none is and it is `needed`. Without a value they go.
fn put(config: &mut Map<String, Value>, spellings: &[&str], value: Option<Value>, needed: bool) {
    let there = spellings.iter().filter(|key| config.get(**key).is_some_and(|value| !value.is_null()));
    let mut keys: Vec<&str> = there.copied().collect();
    if keys.is_empty() && needed {
        keys.extend(spellings.first());
    }
    for key in keys {
        match &value {
            Some(value) => config.insert(key.into(), value.clone()),
            None => config.remove(key),
        };
    }
}

/// The sizes that a configuration says.
fn said(architecture: &Architecture, config: &Value) -> Result<Shape> {
    (architecture.shape)(&Config::from_json("config.json".as_ref(), config.clone())?)
}

/// The architecture of `graph`, and its sizes, if configurations of that architecture can say them.
pub(crate) fn checked(graph: &Graph) -> Result<(&'static Architecture, Shape)> {
    let unknown = || Error::UnknownArchitecture { found: graph.name().into(), nearest: None };
    let (architecture, shape) = (Architecture::of(graph).ok_or_else(unknown)?, Shape::of(graph)?);
    shape.check(architecture.keys)?;
    Ok((architecture, shape))
}

/// The configuration of a model whose graph was built from `config` and is now `graph`: the sizes are those of the graph.
/// The same object, if they are what it says already.
///
/// # Errors
/// If no configuration can say the sizes of the graph: blocks that differ from each other, heads that the architecture cannot
/// have.
pub fn describe(config: &Value, graph: &Graph) -> Result<Value> {
    let (architecture, shape) = checked(graph)?;
    let mut before = said(architecture, config).ok();
    let mut config = config.clone();
    // Twice: what silence means may depend on sizes that the first round sets.
    for _ in 0..2 {
        if before.as_ref() == Some(&shape) {
            return Ok(config);
        }
        architecture.keys.set(object(&mut config)?, &shape, before.as_ref());
        before = Some(said(architecture, &config)?);
    }
    if before.as_ref() == Some(&shape) {
        check_long_rope(architecture, &config, &shape)?;
    }
    match before == Some(shape) {
        true => Ok(config),
        false => Err(indescribable("the graph", "windows of attention", "those of the configuration")),
    }
}

/// transformers takes the factors of Phi-3's long-rope for those of a head that is a share of the stream, whatever `head_dim` says.
fn check_long_rope(architecture: &Architecture, config: &Value, shape: &Shape) -> Result<()> {
    let factors = |key: &str| config[key].get("short_factor").is_some();
    let (Some(heads), Some(head)) = (shape.all(|layer| layer.heads), shape.all(|layer| layer.head)) else { return Ok(()) };
    let phi = architecture.names.contains(&"phi3");
    if !phi || heads * head == shape.hidden || !["rope_scaling", "rope_parameters"].into_iter().any(factors) {
        return Ok(());
    }
    let found = format!("{heads} query heads of {head} columns with the factors of a long-rope");
    Err(indescribable("the graph", found, format!("{} columns in all", shape.hidden)))
}

/// [`describe`], for readers who have the graph as well. Of sizes that no configuration can say, those remain that all blocks
/// share, and the others are left out: better none than a wrong one.
pub fn describe_in_part(config: &Value, graph: &Graph) -> Value {
    let mut rest = config.clone();
    match describe(config, graph) {
        Ok(config) => config,
        Err(_) => {
            if let (Some(architecture), Ok(shape), Ok(config)) = (Architecture::of(graph), Shape::of(graph), object(&mut rest)) {
                architecture.keys.set(config, &shape, said(architecture, &Value::Object(config.clone())).ok().as_ref());
            }
            rest
        }
    }
}

fn object(config: &mut Value) -> Result<&mut Map<String, Value>> {
    config.as_object_mut().ok_or_else(|| indescribable("the model", "no configuration", "a `config.json` to start from"))
}

/// The error for `part`, which no Hugging Face folder can hold.
pub(crate) fn indescribable(part: impl Into<String>, found: impl Into<String>, wanted: impl Into<String>) -> Error {
    Error::Indescribable { part: part.into(), found: found.into(), wanted: wanted.into() }
}
