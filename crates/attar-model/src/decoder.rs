//! The decoder of the Llama family: pre-norm blocks of grouped rotary attention and a gated MLP. Its settings are spelled as
//! transformers 5 writes them or as older checkpoints do.

use attar_graph::{
    Graph, Op, ValueId,
    op::{Attention, Rope, Scaling},
};

use crate::{
    Config, Error, Result,
    builder::{Builder, Frame, Heads, Inputs, Mlp},
    config::{check, check_heads, check_unset},
    gguf,
    settings::Settings,
    shape::Shape,
};

/// Which linear layers add a bias.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Biases {
    /// Query, key and value.
    pub(crate) projections: bool,
    /// The output of attention.
    pub(crate) output: bool,
    /// All of the MLP.
    pub(crate) mlp: bool,
}

/// What transformers assumes of a family of decoders where a configuration is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) epsilon: f64,
    /// `max_position_embeddings`.
    pub(crate) context: usize,
    pub(crate) key_heads: Option<usize>,
    /// Width of a head; the hidden size over the heads without it.
    pub(crate) head: Option<usize>,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    /// The context of the first training, where it is a setting of its own that has precedence.
    pub(crate) original: Option<usize>,
    /// Rotary positions are plain or a long-rope, whose type may be called `su` or `yarn`.
    pub(crate) only_long_rope: bool,
}

impl Defaults {
    /// Llama's.
    pub(crate) const LLAMA: Defaults = Defaults {
        epsilon: 1e-6,
        context: 2048,
        key_heads: None,
        head: None,
        tied: false,
        original: None,
        only_long_rope: false,
    };
}

/// The settings that shape a decoder with rotary positions and gated MLPs.
pub(crate) struct DecoderConfig<'a> {
    /// For settings of one architecture.
    pub(crate) settings: Settings<'a>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    key_heads: usize,
    head: usize,
    context: usize,
    /// The context of the first training by a setting outside `rope_scaling`.
    original: Option<usize>,
    only_long_rope: bool,
    pub(crate) rms_norm_eps: f64,
    tied: bool,
}

impl<'a> DecoderConfig<'a> {
    /// Those of `config`, whose numbers fit each other.
    pub(crate) fn parse(config: &'a Config, defaults: Defaults) -> Result<DecoderConfig<'a>> {
        let c = config.settings()?;
        let (hidden_size, heads) = (c.need_size("hidden_size")?, c.need_size("num_attention_heads")?);
        // Here `null` is not the default: it is as many as there are query heads.
        let key_heads = match c.is_null("num_key_value_heads") {
            true => None,
            false => c.size("num_key_value_heads")?.or(defaults.key_heads),
        };
        let key_heads = key_heads.unwrap_or(heads);
        if !heads.is_multiple_of(key_heads) {
            return Err(Error::Contradiction {
                first: format!("num_attention_heads = {heads}"),
                second: format!("num_key_value_heads = {key_heads}"),
            });
        }
        let head = match c.size("head_dim")?.or(defaults.head) {
            Some(head) => head,
            None => {
                check_heads(("hidden_size", hidden_size), ("num_attention_heads", heads))?;
                hidden_size / heads
            }
        };
        check("is_causal", &c.truth("is_causal")?.unwrap_or(true), |causal| *causal, "`true`")?;
        Ok(DecoderConfig {
            vocab_size: c.need_size("vocab_size")?,
            hidden_size,
            intermediate_size: c.need_size("intermediate_size")?,
            num_hidden_layers: c.need_size("num_hidden_layers")?,
            num_attention_heads: heads,
            key_heads,
            head,
            context: c.size("max_position_embeddings")?.unwrap_or(defaults.context),
            original: c.size("original_max_position_embeddings")?.or(defaults.original),
            rms_norm_eps: c.positive("rms_norm_eps")?.unwrap_or(defaults.epsilon),
            only_long_rope: defaults.only_long_rope,
            tied: c.truth("tie_word_embeddings")?.unwrap_or(defaults.tied),
            settings: c,
        })
    }

    /// The activation of the MLP, by `hidden_act`: the only one that runs.
    pub(crate) fn check_silu(&self) -> Result<()> {
        check(
            "hidden_act",
            &self.settings.text("hidden_act")?.unwrap_or("silu"),
            |act| matches!(*act, "silu" | "swish"),
            "`silu`",
        )
    }

    /// Every block attends as `kind` says.
    pub(crate) fn check_layers(&self, kind: &'static str) -> Result<()> {
        let types = self.settings.texts("layer_types")?.unwrap_or_default();
        if !types.is_empty() && types.len() != self.num_hidden_layers {
            return Err(self.layer_count(types.len()));
        }
        let other = types.into_iter().find(|found| *found != kind).unwrap_or(kind);
        check("layer_types", &other, |found| *found == kind, "one kind for all blocks, as the window says")
    }

    pub(crate) fn layer_count(&self, types: usize) -> Error {
        Error::Contradiction {
            first: format!("num_hidden_layers = {}", self.num_hidden_layers),
            second: format!("{types} layer_types"),
        }
    }

    /// Qwen's window, which is off unless `use_sliding_window` is set.
    pub(crate) fn check_no_window(&self) -> Result<()> {
        check_unset(&self.settings, "use_sliding_window")?;
        for unused in ["sliding_window", "max_window_layers"] {
            let _ = self.settings.get(unused);
        }
        self.check_layers("full_attention")
    }

    /// The last positions that a query sees, or all. `null` is all; `absent` is what it is without the key.
    pub(crate) fn window(&self, absent: Option<usize>) -> Result<Option<usize>> {
        if self.settings.is_null("sliding_window") {
            return Ok(None);
        }
        Ok(self.settings.size("sliding_window")?.or(absent))
    }

    /// What surrounds the blocks.
    pub(crate) fn frame(&self) -> Frame {
        let (vocabulary, hidden) = (self.vocab_size, self.hidden_size);
        Frame { vocabulary, hidden, blocks: self.num_hidden_layers, tied: self.tied, softcap: None }
    }

    /// The sizes of its graph, with the `window` of each block.
    pub(crate) fn shape(&self, window: impl Fn(usize) -> Option<usize>) -> Shape {
        let (tied, blocks) = (Some(self.tied), self.num_hidden_layers);
        Shape::uniform(self.vocab_size, tied, blocks, &self.heads(), self.intermediate_size, window)
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads { hidden: self.hidden_size, query: self.num_attention_heads, key: self.key_heads, width: self.head }
    }

    pub(crate) fn mlp(&self, bias: bool) -> Mlp {
        Mlp { hidden: self.hidden_size, inner: self.intermediate_size, bias, activation: Op::Silu }
    }

    /// Rotary positions for whole heads, by the configuration and by the factors in the checkpoint, if it has such.
    pub(crate) fn rope_of(&self, builder: &Builder<'_>) -> Result<Rope> {
        let parameters = self.rope_parameters()?;
        check("partial_rotary_factor", &self.rotary_share(parameters.as_ref())?, |factor| *factor == 1.0, "1")?;
        let rope = self.rope(self.head)?;
        Ok(match gguf::rope_factors(builder.source(), self.head)? {
            Some(factors) => Rope { scaling: Scaling::Factors(factors), ..rope },
            None => rope,
        })
    }

    /// Rotary positions by the configuration, for `width` columns of a head.
    pub(crate) fn rope(&self, width: usize) -> Result<Rope> {
        let parameters = self.rope_parameters()?;
        let old = self.settings.positive("rope_theta")?;
        let Some(parameters) = parameters else { return Ok(Rope { theta: old.unwrap_or(10_000.0), scaling: Scaling::Default }) };
        let theta = parameters.positive("rope_theta")?.or(old).unwrap_or(10_000.0);
        let scaling = self.scaling(&parameters, width, theta)?;
        Ok(Rope { theta, scaling })
    }

    /// `rope_parameters`, or `rope_scaling`, which is the older spelling.
    fn rope_parameters(&self) -> Result<Option<Settings<'a>>> {
        let given = |key: &str| self.settings.get(key).is_some_and(|value| !value.as_object().is_some_and(|map| map.is_empty()));
        let (old, new) = ("rope_scaling", "rope_parameters");
        match (given(old), given(new)) {
            (true, true) if self.settings.get(old) != self.settings.get(new) => {
                Err(Error::Contradiction { first: old.into(), second: format!("{new} says something else") })
            }
            (true, false) => self.settings.inner(old),
            (_, true) => self.settings.inner(new),
            (false, false) => Ok(None),
        }
    }

    /// The share of a head's columns that rotate.
    fn rotary_share(&self, parameters: Option<&Settings<'_>>) -> Result<f64> {
        const KEY: &str = "partial_rotary_factor";
        let outer = self.settings.positive(KEY)?;
        let inner = parameters.map(|parameters| parameters.positive(KEY)).transpose()?.flatten();
        match (outer, inner) {
            (Some(outer), Some(inner)) if outer != inner => Err(Error::Contradiction {
                first: format!("{KEY} = {outer}"),
                second: format!("{KEY} = {inner} among the settings of rotary positions"),
            }),
            _ => Ok(outer.or(inner).unwrap_or(1.0)),
        }
    }

    /// How many columns of a head rotate.
    pub(crate) fn rotary_width(&self) -> Result<usize> {
        let width = (self.head as f64 * self.rotary_share(self.rope_parameters()?.as_ref())?) as usize;
        let fits = |width: &usize| *width > 0 && width.is_multiple_of(2) && *width <= self.head;
        check("partial_rotary_factor", &width, fits, "an even number of columns, at most a whole head")?;
        Ok(width)
    }

    /// How `p` stretches the rotary positions of `width` columns.
    pub(crate) fn scaling(&self, p: &Settings<'_>, width: usize, theta: f64) -> Result<Scaling> {
        let kind = match (rope_type(p)?, self.only_long_rope) {
            ("su" | "yarn", true) => "longrope",
            (other @ ("linear" | "llama3"), true) => {
                let wanted = "`default` or `longrope`";
                return Err(Error::Unsupported { key: p.full("rope_type"), found: other.into(), wanted });
            }
            (kind, _) => kind,
        };
        let need = |key: &str| p.need(key, p.positive(key)?, &format!("a number above 0 for `{kind}`"));
        Ok(match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: need("factor")? },
            "llama3" => {
                let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
                let order = || format!("{low} to {high}");
                if high <= low {
                    return Err(p.wrong("low_freq_factor` to `high_freq_factor", order(), "a low factor below the high one"));
                }
                Scaling::Llama3 { factor: need("factor")?, low, high, original: self.original(p)? }
            }
            "yarn" => self.yarn(p, need("factor")?, theta)?,
            "longrope" => self.long_rope(p, width)?,
            other => {
                let wanted = "`default`, `linear`, `llama3`, `yarn` or `longrope`";
                return Err(Error::Unsupported { key: p.full("rope_type"), found: other.into(), wanted });
            }
        })
    }

    /// Context length of the first training: the setting outside `p` has precedence.
    fn original(&self, p: &Settings<'_>) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        match (self.original, p.size(KEY)?) {
            (Some(outer), Some(inner)) if outer != inner => {
                Err(Error::Contradiction { first: format!("{KEY} = {outer}"), second: format!("{} = {inner}", p.full(KEY)) })
            }
            (outer, inner) => Ok(outer.or(inner).unwrap_or(self.context) as f64),
        }
    }

    fn yarn(&self, p: &Settings<'_>, factor: f64, theta: f64) -> Result<Scaling> {
        let (fast, slow) = (p.number("beta_fast")?, p.number("beta_slow")?);
        // Zero stands for the default.
        let or = |beta: Option<f64>, default| beta.filter(|beta| *beta != 0.0).unwrap_or(default);
        let (fast, slow) = (or(fast, 32.0), or(slow, 1.0));
        if fast < slow {
            return Err(p.wrong(
                "beta_fast` and `beta_slow",
                format!("{fast} and {slow}"),
                "the fast one not below the slow one",
            ));
        }
        if theta <= 1.0 {
            return Err(self.settings.wrong("rope_theta", theta.to_string(), "more than 1 for `yarn`"));
        }
        let (one, all) = (p.number("mscale")?, p.number("mscale_all_dim")?);
        let attention = p.positive("attention_factor")?.unwrap_or_else(|| yarn_attention(factor, one, all));
        let truncate = p.truth("truncate")?.unwrap_or(true);
        Ok(Scaling::Yarn { factor, original: self.original(p)?, fast, slow, attention, truncate })
    }

    fn long_rope(&self, p: &Settings<'_>, width: usize) -> Result<Scaling> {
        let pairs = width / 2;
        let wanted = format!("{pairs} numbers above 0, one for each pair of columns that rotates");
        let list = |key: &str| {
            let factors = p.need(key, p.factors(key)?, &wanted)?;
            if factors.len() == pairs { Ok(factors) } else { Err(p.wrong(key, format!("{} numbers", factors.len()), &*wanted)) }
        };
        let (short, long, original) = (list("short_factor")?, list("long_factor")?, self.original(p)?);
        let factor = p.positive("factor")?.unwrap_or(self.context as f64 / original);
        let attention = p.positive("attention_factor")?.unwrap_or_else(|| long_rope_attention(factor, original));
        Ok(Scaling::LongRope { short, long, original: original as usize, attention })
    }
}

/// `rope_type`, or `type`, which is the older spelling.
pub(crate) fn rope_type<'a>(p: &Settings<'a>) -> Result<&'a str> {
    match (p.text("rope_type")?, p.text("type")?) {
        (Some(new), Some(old)) if new != old => Err(Error::Contradiction {
            first: format!("{} = {new}", p.full("rope_type")),
            second: format!("{} = {old}", p.full("type")),
        }),
        (new, old) => Ok(new.or(old).unwrap_or("default")),
    }
}

/// `sqrt(1 + ln(factor) / ln(original))`, by which cosines and sines grow with the context.
fn long_rope_attention(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}

/// `0.1 m ln(factor) + 1`, or the quotient of two such where the configuration names both `m`.
fn yarn_attention(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
    let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, mscale_all_dim) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
        _ => magnitude(1.0),
    }
}

/// Blocks of `attention` and the gated MLP of `config`, between the embedding and the head.
pub(crate) fn build(
    config: &DecoderConfig<'_>,
    mut builder: Builder<'_>,
    mlp_bias: bool,
    attention: impl Fn(&mut Builder<'_>, Inputs, ValueId) -> Result<ValueId>,
) -> Result<Graph> {
    let (frame, mlp) = (config.frame(), config.mlp(mlp_bias));
    let norm = |b: &mut Builder<'_>, name: &str, weight: &str, x| b.rms_norm(name, weight, x, frame.hidden, config.rms_norm_eps);
    let logits = builder.decoder(
        &frame,
        |b, inputs| b.embedding("x", "embedding", inputs.tokens, [frame.vocabulary, frame.hidden]),
        |b, _, inputs, x| b.pre_norm(x, norm, |b, x| attention(b, inputs, x), |b, x| b.gated_mlp(&mlp, x)),
        norm,
    )?;
    builder.output(logits);
    builder.finish()
}

/// [`build`] with plain rotary attention, in which a query sees the last `window` positions, or all.
pub(crate) fn build_rotary(
    config: &DecoderConfig<'_>,
    builder: Builder<'_>,
    biases: Biases,
    window: Option<usize>,
) -> Result<Graph> {
    let (heads, rope) = (config.heads(), config.rope_of(&builder)?);
    let op = Attention { window, ..Attention::causal(heads.scale()) };
    build(config, builder, biases.mlp, |b, inputs, x| {
        let qkv = b.project(&heads, x, biases.projections)?;
        let qkv = b.rotate(&rope, inputs.positions, qkv)?;
        b.attend(&heads, op.clone(), qkv, biases.output)
    })
}
