//! How long a shape takes for a token on a device: by the plan that `compile` would make of it in integers.

use attar_compile::Compile;
use attar_compress::{Activations, Quantize, insert, prune::Target};
use attar_graph::Graph;
use attar_tensor::Source;
use serde_json::{Value, from_value, json};

use super::super::{
    codes::{place, refused},
    device,
    kind::StepError,
};

/// Predicted seconds for one token after a prompt, all in integers. Reads no weight.
///
/// # Errors
/// If there is no such device, or it cannot run the model.
pub(super) fn seconds(target: &Target, graph: &Graph, source: &dyn Source) -> Result<f64, StepError> {
    let graph = in_integers(target, graph)?;
    let compile = Compile { device: target.device.clone().unwrap_or_default(), set: target.set.clone(), ..Compile::default() };
    let planned = compile.plan(&graph, source).map_err(device::refused)?;
    Ok(planned.decode_latency().expect("by default a token after the prompt is planned"))
}

/// The graph as `quantize` and `activations` would leave it.
fn in_integers(target: &Target, graph: &Graph) -> Result<Graph, StepError> {
    let grid = target.grid.as_ref().map_or_else(|| json!("int8"), |grid| json!(grid));
    let scales = |group: Option<usize>| match group {
        Some(group) => json!({ "group": group, "scale_dtype": "int8" }),
        None => json!({ "group": "row" }),
    };
    let mut graph = graph.clone();
    let outside: Vec<&str> = ["embedding", "lm_head"].into_iter().filter(|name| graph.find(name).is_some()).collect();
    let steps =
        [with(scales(target.group), json!({ "grid": grid })), with(scales(None), json!({ "grid": "int8", "select": outside }))];
    for step in steps {
        let step: Quantize = from_value(step).expect("settings of the step `quantize`");
        for assignment in step.assign(&graph).map_err(refused)? {
            place(&mut graph, &assignment);
        }
    }
    let activations = json!({ "mode": "static", "select": ["**"] });
    let activations: Activations = from_value(activations).expect("settings of the step `activations`");
    let sites = activations.sites(&graph).map_err(refused)?;
    Ok(insert(&graph, &sites).map_err(crate::Error::from)?)
}

/// The keys of both objects.
fn with(mut one: Value, other: Value) -> Value {
    if let (Value::Object(keys), Value::Object(more)) = (&mut one, other) {
        keys.extend(more);
    }
    one
}
