//! What can be changed about a variant that loses too much.

use std::sync::Arc;

use attar_compress::Pattern;
use attar_tensor::Grid;
use serde_json::Value as Settings;
use toml_edit::DocumentMut;

use super::{
    change::{BITS, Change, LOOKS, Part, TRAINING, TRAINS},
    edit,
    noise::{Kind, Noise, finer, refined, regrouped},
    shape::Shrunk,
};
use crate::{Recipe, VariantReport, step::Step};

/// A change, and what it is predicted to bring.
pub(super) struct Proposal {
    pub(super) what: String,
    /// The noise then, relative to now.
    pub(super) noise: f64,
    /// Bytes of weights more than now.
    pub(super) bytes: i64,
    /// What else it takes, in words.
    pub(super) cost: String,
    /// The same, in order: nothing, a look at activations, [`TRAINING`].
    pub(super) effort: u8,
    /// The text of the recipe then, and the part of it that changed.
    pub(super) recipe: String,
    pub(super) snippet: String,
}

/// What GPTAQ leaves of the divergence of rounding to nearest, and of that of GPTQ. Measured on shakespeare-1m, groups of 64, calibrated on the mixture: .51 and .56, .80
/// and .82 (3 and 4 bits; 8,192 tokens of the plays); these are more cautious.
const AFTER_NEAREST: f64 = 0.65;
const AFTER_GPTQ: f64 = 0.9;

/// What `recover` leaves of that of rounding to nearest: .69 and .71 there.
const RECOVERED: f64 = 0.75;

/// What a calibration text four times as long leaves where it is shorter than [`SHORT`]: .85 from 1,024 to 4,096 tokens there, and nothing more beyond 16,384.
const LONGER: f64 = 0.85;

/// Tokens.
const SHORT: usize = 4096;

/// The kind of the step that trains codes.
const RECOVER: &str = "recover";

/// The variant's steps that a change is about.
struct Place<'r> {
    /// The step `quantize` that is changed.
    key: &'r str,
    settings: Settings,
    /// The last step that works on the same codes.
    last: &'r str,
    recovers: bool,
    /// The step `activations`.
    activations: Option<(&'r str, Settings)>,
}

/// Changes of a variant whose loss must become `allowed` of what it is, alone and those that go together; or why none is known. `divergence` is
/// what the gate's eval measured from the baseline, in nats per token.
pub(super) fn proposals(
    recipe: &Recipe,
    variant: &VariantReport,
    allowed: f64,
    divergence: Option<f64>,
) -> Result<Vec<Proposal>, &'static str> {
    let shrunk = Shrunk::of(recipe, variant);
    let (mut changes, mut shape) = (Vec::new(), 0.0);
    if let Some(shrunk) = &shrunk {
        let all = divergence.ok_or("the gate's eval measures no KL divergence, which says what `prune` lost")?;
        shape = (shrunk.divergence / all).clamp(0.0, 1.0);
        changes.extend(shrunk.changes((allowed - (1.0 - shape)) / shape).into_iter().map(|change| vec![change]));
    }
    let steps = recipe.variants.iter().find(|made| made.name == variant.name).map(|made| &made.steps);
    let steps = steps.ok_or("the variant has no steps")?;
    // What rounding may leave if nothing else changes.
    let rest = |of_shape: f64| (allowed - shape * of_shape) / (1.0 - shape);
    let mut noise = Noise::of(variant);
    let place = Place::of(recipe, steps, &mut noise);
    match place {
        Ok(place) if rest(1.0) > 0.0 => changes.extend(of_rounding(recipe, &place, &noise, rest(1.0))),
        // Not enough alone: finer weights beside the cheapest change of the shape that leaves room for them.
        Ok(place) => {
            let firsts = shrunk.iter().flat_map(|shrunk| shrunk.changes(allowed / 2.0)).filter(|first| rest(first.noise) > 0.0);
            let pairs = firsts.filter_map(|first| {
                let more = more_bits(&place, &noise, rest(first.noise)).filter(|more| more.noise < 1.0)?;
                Some(vec![first, more])
            });
            changes.extend(pairs);
        }
        Err(why) if shrunk.is_none() => return Err(why),
        Err(_) => {}
    }
    Ok(changes.iter().filter_map(|together| proposal(recipe, together, shape)).collect())
}

fn of_rounding<'k>(recipe: &'k Recipe, place: &Place<'k>, noise: &Noise, allowed: f64) -> Vec<Vec<Change<'k>>> {
    let mut changes: Vec<Vec<Change<'_>>> = Vec::new();
    changes.extend(more_bits(place, noise, allowed).map(|change| vec![change]));
    changes.extend(smaller_groups(place, noise, allowed).map(|change| vec![change]));
    changes.extend(wider_activations(place, noise).map(|change| vec![change]));
    changes.extend(finer_cache(place, noise).map(|change| vec![change]));
    changes.extend(longer(recipe, place).map(|change| vec![change]));
    for of in [rounding, recovery] {
        let Some(first) = of(place, noise) else { continue };
        let rest = allowed / first.noise;
        changes.extend(of(place, noise).zip(more_bits(place, noise, rest)).map(|(first, more)| vec![first, more]));
        changes.push(vec![first]);
    }
    changes
}

impl<'r> Place<'r> {
    /// The step `quantize` among those of a variant; of several the one whose weights lose most, and then `noise` knows no others.
    fn of(recipe: &Recipe, steps: &'r [(String, Arc<dyn Step>)], noise: &mut Noise) -> Result<Place<'r>, &'static str> {
        let of_kind = |name: &'static str| steps.iter().filter(move |(_, step)| step.kind().name == name);
        let selected = |step: &dyn Step| {
            let settings = step.settings();
            let patterns = settings["select"].as_array().into_iter().flatten().filter_map(Settings::as_str);
            let patterns: Vec<Pattern> = patterns.filter_map(|text| Pattern::new(text).ok()).collect();
            move |kind: &Kind| patterns.iter().any(|pattern| pattern.matches(&kind.example))
        };
        let lost = |step: &dyn Step| {
            let own = selected(step);
            noise.kinds.iter().filter(|kind| own(kind)).map(|kind| kind.noise).sum::<f64>()
        };
        let most = of_kind("quantize").max_by(|a, b| lost(&*a.1).total_cmp(&lost(&*b.1)));
        let (key, quantize) = most.ok_or("the variant has no step `quantize`")?;
        if of_kind("quantize").nth(1).is_some() {
            noise.restrict(&selected(&**quantize));
        }
        let mut document: DocumentMut = recipe.document.text.parse().map_err(|_| "the recipe is no TOML")?;
        if edit::step(&mut document, key).is_none() {
            return Err("the step `quantize` is not a table with a header of its own");
        }
        let on_codes = ["quantize", "autoround", "recover"];
        let last = steps.iter().rfind(|(_, step)| on_codes.contains(&step.kind().name));
        Ok(Place {
            key,
            settings: quantize.settings(),
            last: last.map_or(key, |(key, _)| key),
            recovers: of_kind("recover").next().is_some(),
            activations: of_kind("activations").next().map(|(key, step)| (key.as_str(), step.settings())),
        })
    }
}

/// `shape` is the share of the loss that is not rounding's.
fn proposal(recipe: &Recipe, changes: &[Change<'_>], shape: f64) -> Option<Proposal> {
    let mut document: DocumentMut = recipe.document.text.parse().ok()?;
    let mut parts: Vec<Part> = changes.iter().map(|change| (change.make)(&mut document)).collect::<Option<_>>()?;
    // What is new stands behind what it follows.
    parts.sort_by_key(|part| matches!(part, Part::New(_)));
    parts.dedup();
    let told = parts.iter().map(|part| part.told(&mut document)).collect::<Option<Vec<_>>>()?;
    let hardest = changes.iter().max_by_key(|change| change.effort)?;
    let left =
        |of_shape: bool| changes.iter().filter(|change| change.of_shape == of_shape).map(|change| change.noise).product::<f64>();
    Some(Proposal {
        what: changes.iter().map(|change| change.what.as_str()).collect::<Vec<_>>().join(", and "),
        noise: shape * left(true) + (1.0 - shape) * left(false),
        bytes: changes.iter().map(|change| change.bytes).sum::<f64>().round() as i64,
        cost: hardest.cost.into(),
        effort: hardest.effort,
        recipe: document.to_string(),
        snippet: told.join("\n"),
    })
}

/// Finer grids for the kinds of weights that lose most for their size, as many as it takes; a larger budget, where the step has one.
fn more_bits<'k>(place: &Place<'k>, noise: &Noise, allowed: f64) -> Option<Change<'k>> {
    let key = place.key;
    if let Some(bits) = place.settings["bits"].as_f64() {
        let more = (bits + (1.0 / allowed).log(4.0).max(0.05)) * 20.0;
        let (more, weights) = (more.ceil() / 20.0, noise.kinds.iter().map(|kind| kind.weights).sum::<f64>());
        let make = move |document: &mut DocumentMut| {
            edit::step(document, key)?.insert("bits", toml_edit::value(more));
            Some(Part::Step(key.into()))
        };
        return Some(Change {
            what: format!("a budget of {more} bits in place of {bits}"),
            noise: 0.25f64.powf(more - bits),
            bytes: weights * (more - bits) / 8.0,
            cost: BITS,
            effort: 0,
            of_shape: false,
            make: Box::new(make),
        });
    }
    place.settings["grid"].as_str()?;
    let (chosen, noise, bytes) = spent(noise, allowed);
    let (first, more) = chosen.split_first()?;
    let grids: Vec<(String, &'static str)> = chosen.iter().map(|(kind, grid)| (kind.pattern.clone(), grid.name())).collect();
    let what = match more.len() {
        0 => format!("`{}` for `{}`", first.1.name(), first.0.pattern),
        1 => format!("more bits for `{}` and `{}`", first.0.pattern, more[0].0.pattern),
        others => format!("more bits for `{}` and {others} other kinds of weights", first.0.pattern),
    };
    let everywhere: Vec<String> =
        place.settings["select"].as_array().into_iter().flatten().filter_map(Settings::as_str).map(Into::into).collect();
    let make = move |document: &mut DocumentMut| {
        let step = edit::step(document, key)?;
        let mut names: Vec<&str> = grids.iter().map(|(_, grid)| *grid).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let select = grids.iter().filter(|(_, grid)| *grid == name).map(|(kind, _)| kind.clone()).collect();
            let select = with_tied(select, &everywhere);
            edit::override_grid(step, &select, name)?;
        }
        Some(Part::Step(key.into()))
    };
    Some(Change { what, noise, bytes, cost: BITS, effort: 0, of_shape: false, make: Box::new(make) })
}

/// A table that is also the head has one grid: with either of them goes the other, where the step selects it.
fn with_tied(mut select: Vec<String>, everywhere: &[String]) -> Vec<String> {
    for (one, other) in [("embedding", "lm_head"), ("lm_head", "embedding")] {
        let selected = everywhere.iter().any(|pattern| pattern == other || pattern == "**");
        if selected && select.iter().any(|name| name == one) && !select.iter().any(|name| name == other) {
            select.push(other.into());
        }
    }
    select
}

/// The kinds that get finer grids so that no more than `allowed` of the noise is left, the best bargain first; with what is left, and what it takes.
fn spent(noise: &Noise, allowed: f64) -> (Vec<(Kind, &'static dyn Grid)>, f64, f64) {
    let (total, mut left, mut bytes) = (noise.total(), noise.total(), 0.0);
    let mut grids: Vec<&'static dyn Grid> = noise.kinds.iter().map(|kind| kind.grid).collect();
    let gain = |at: usize, grids: &[&'static dyn Grid]| {
        let (kind, next) = (&noise.kinds[at], finer(grids[at])?);
        let gained = kind.noise * (refined(kind.grid, grids[at]) - refined(kind.grid, next));
        let cost = kind.weights * f64::from(next.bits() - grids[at].bits()) / 8.0;
        (gained > 0.0).then_some((at, next, gained, cost))
    };
    while left > allowed * total {
        let all = (0..grids.len()).filter_map(|at| gain(at, &grids));
        let Some((at, next, gained, cost)) = all.max_by(|a, b| (a.2 / a.3).total_cmp(&(b.2 / b.3))) else { break };
        grids[at] = next;
        left -= gained;
        bytes += cost;
    }
    let mut chosen: Vec<(Kind, &'static dyn Grid)> =
        noise.kinds.iter().cloned().zip(grids).filter(|(kind, grid)| grid.name() != kind.grid.name()).collect();
    chosen.sort_by(|a, b| b.0.noise.total_cmp(&a.0.noise));
    (chosen, left / total, bytes)
}

/// Bits of a scale, for the price of more of them.
const SCALE_BITS: f64 = 16.0;

fn smaller_groups<'k>(place: &Place<'k>, noise: &Noise, allowed: f64) -> Option<Change<'k>> {
    let (key, now) = (place.key, place.settings["group"].as_u64()? as usize);
    let share = noise.of_weights();
    let left = |group: usize| share * regrouped(now, group) + 1.0 - share;
    let smaller: Vec<usize> =
        std::iter::successors(Some(now / 2), |group| Some(group / 2)).take_while(|group| *group >= 16).collect();
    let group = smaller.iter().copied().find(|group| left(*group) <= allowed).or(smaller.last().copied())?;
    let scale = if place.settings["scale_dtype"].as_str() == Some("int6") { 6.0 } else { SCALE_BITS };
    let weights: f64 = noise.kinds.iter().map(|kind| kind.weights).sum();
    let make = move |document: &mut DocumentMut| {
        edit::step(document, key)?.insert("group", toml_edit::value(group as i64));
        Some(Part::Step(key.into()))
    };
    Some(Change {
        what: format!("groups of {group} in place of {now}"),
        noise: left(group),
        bytes: weights * scale * (1.0 / group as f64 - 1.0 / now as f64) / 8.0,
        cost: BITS,
        effort: 0,
        of_shape: false,
        make: Box::new(make),
    })
}

/// Rounding that looks at activations.
fn rounding<'k>(place: &Place<'k>, noise: &Noise) -> Option<Change<'k>> {
    let (key, now) = (place.key, place.settings["algorithm"].as_str()?);
    let factor = match now {
        "rtn" | "hqq" => AFTER_NEAREST,
        "gptq" => AFTER_GPTQ,
        _ => return None,
    };
    let share = noise.of_weights();
    let make = move |document: &mut DocumentMut| {
        let step = edit::step(document, key)?;
        step.insert("algorithm", toml_edit::value("gptaq"));
        if !step.contains_key("scales") {
            step.insert("scales", toml_edit::value("mse"));
        }
        Some(Part::Step(key.into()))
    };
    Some(Change {
        what: format!("`gptaq` in place of `{now}`"),
        noise: share * factor + 1.0 - share,
        bytes: 0.0,
        cost: LOOKS,
        effort: 1,
        of_shape: false,
        make: Box::new(make),
    })
}

/// A step that trains codes and scales towards the float model.
fn recovery<'k>(place: &Place<'k>, noise: &Noise) -> Option<Change<'k>> {
    let last = place.last;
    let make = move |document: &mut DocumentMut| edit::insert_behind(document, last, RECOVER).map(|()| Part::New(RECOVER));
    let share = noise.of_weights();
    // What is calibrated already has little left to learn from the same text.
    let nearest = place.settings["algorithm"].as_str().is_some_and(|name| ["rtn", "hqq"].contains(&name));
    (nearest && !place.recovers).then(|| Change {
        what: "a step `recover`".into(),
        noise: share * RECOVERED + 1.0 - share,
        bytes: 0.0,
        cost: TRAINS,
        effort: TRAINING,
        of_shape: false,
        make: Box::new(make),
    })
}

/// Activations in 16 bits, where those in 8 lose a good part.
fn wider_activations<'k>(place: &Place<'k>, noise: &Noise) -> Option<Change<'k>> {
    const PART: f64 = 0.05;
    let (key, settings) = place.activations.as_ref()?;
    let (key, share) = (*key, noise.activations / noise.total());
    let make = move |document: &mut DocumentMut| {
        edit::step(document, key)?.insert("bits", toml_edit::value(16));
        Some(Part::Step(key.into()))
    };
    (settings["bits"] == 8 && share > PART).then(|| Change {
        what: "activations of 16 bits".into(),
        noise: 1.0 - share,
        bytes: 0.0,
        cost: "int16 products: not every device has them",
        effort: 0,
        of_shape: false,
        make: Box::new(make),
    })
}

/// A cache of keys and values in 8 bits in place of 4.
fn finer_cache<'k>(place: &Place<'k>, noise: &Noise) -> Option<Change<'k>> {
    let (key, settings) = place.activations.as_ref()?;
    let (key, share) = (*key, noise.cache / noise.total());
    let make = move |document: &mut DocumentMut| {
        edit::step(document, key)?.insert("kv", toml_edit::value("int8"));
        Some(Part::Step(key.into()))
    };
    (settings["kv"] == "int4" && share > 0.0).then(|| Change {
        what: "a cache of keys and values in `int8`".into(),
        noise: 1.0 - share * (1.0 - 1.0 / 256.0),
        bytes: 0.0,
        cost: "a cache of twice the size",
        effort: 0,
        of_shape: false,
        make: Box::new(make),
    })
}

/// Four times as much text, of attar's own kinds where it was one.
fn longer<'k>(recipe: &'k Recipe, place: &Place<'k>) -> Option<Change<'k>> {
    let text =
        recipe.calibration().filter(|_| place.settings["algorithm"].as_str().is_some_and(|name| name.starts_with("gpt")))?;
    let short = text.length.is_some_and(|length| text.samples.saturating_mul(length) < SHORT);
    if !short {
        return None;
    }
    let samples = (text.samples * 4) as i64;
    let make = move |document: &mut DocumentMut| {
        document["data"]["calibration"].as_table_like_mut()?.insert("samples", toml_edit::value(samples));
        Some(Part::Calibration)
    };
    Some(Change {
        what: format!("a calibration text of {samples} windows in place of {}", text.samples),
        noise: LONGER,
        bytes: 0.0,
        cost: LOOKS,
        effort: 1,
        of_shape: false,
        make: Box::new(make),
    })
}
