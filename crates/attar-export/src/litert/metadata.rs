//! What LiteRT-LM is told of a model (`LlmMetadata`, a protobuf): where texts begin and end, how to sample, how a dialogue becomes a text.

use std::fmt::Write as _;

use attar_model::ChatTemplate;
use protobuf::CodedOutputStream;
use serde_json::Value;

/// What it says.
pub(super) struct Metadata {
    /// The token that the runtime puts before every text.
    pub(super) start: Option<i32>,
    /// Each ends an answer.
    pub(super) stops: Vec<i32>,
    /// How `generation_config.json` samples.
    pub(super) sampler: Sampler,
    /// Tokens that the caches hold.
    pub(super) cache: usize,
    pub(super) template: Option<String>,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    top_k: i32,
    top_p: f32,
    temperature: f32,
}

/// Sampling from the first `k` with a share `p`: of one, it is greedy. The runtime's own type for greedy fails at the first token (LiteRT-LM 0.18).
const TOP_P: i32 = 2;

impl Sampler {
    /// That of `generation_config.json`, with transformers' defaults; greedy, if that does not sample.
    pub(super) fn of(generation: &Value) -> Sampler {
        if generation["do_sample"] != true {
            return Sampler { top_k: 1, top_p: 1.0, temperature: 1.0 };
        }
        let number = |key: &str, default: f64| generation[key].as_f64().filter(|n| n.is_finite() && *n > 0.0).unwrap_or(default);
        Sampler {
            top_k: number("top_k", 50.0) as i32,
            top_p: number("top_p", 1.0) as f32,
            temperature: number("temperature", 1.0) as f32,
        }
    }
}

impl Metadata {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let token = |id: i32| message(|to| to.write_bytes(1, &message(|to| to.write_repeated_packed_int32(1, &[id]))));
        message(|to| {
            if let Some(start) = self.start {
                to.write_bytes(1, &token(start))?;
            }
            self.stops.iter().try_for_each(|stop| to.write_bytes(2, &token(*stop)))?;
            let Sampler { top_k, top_p, temperature } = self.sampler;
            to.write_bytes(
                4,
                &message(|to| {
                    to.write_enum(1, TOP_P)?;
                    to.write_int32(2, top_k)?;
                    to.write_float(3, top_p)?;
                    to.write_float(4, temperature)
                }),
            )?;
            to.write_int32(5, i32::try_from(self.cache).unwrap_or(i32::MAX))?;
            // A model of no family that the runtime knows by name.
            to.write_bytes(6, &message(|to| to.write_bytes(1, &[])))?;
            if let Some(template) = &self.template {
                to.write_string(7, template)?;
            }
            // Neither thoughts nor calls of functions.
            to.write_bool(11, false)?;
            to.write_bool(12, false)
        })
    }
}

fn message(write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut to = CodedOutputStream::vec(&mut bytes);
    write(&mut to).and_then(|()| to.flush()).expect("a vector takes all bytes");
    drop(to);
    bytes
}

/// The token that a tokenizer puts before every text, by its post-processor.
pub(super) fn start(tokenizer: &Value) -> Option<i32> {
    let post = &tokenizer["post_processor"];
    let several = post["processors"].as_array().map_or(std::slice::from_ref(post), Vec::as_slice);
    several.iter().find_map(|post| {
        let name = post["single"].get(0)?["SpecialToken"]["id"].as_str()?;
        i32::try_from(post["special_tokens"][name]["ids"].get(0)?.as_i64()?).ok()
    })
}

/// A chat template as the runtime can use it: it gives a message's content as a list of parts, and knows no special tokens. `starts` is whether it puts
/// the first token before the text itself: then the template must not.
pub(super) fn template(of: &ChatTemplate, starts: bool) -> String {
    let mut text = String::from(FLATTEN);
    for (name, token) in of.tokens() {
        let token = if starts && name == "bos_token" { "" } else { token };
        let quoted = Value::from(token);
        writeln!(text, "{{%- set {name} = {quoted} -%}}").expect("a string takes any text");
    }
    text + of.source()
}

/// Contents that are lists become the text of their parts.
const FLATTEN: &str = "\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set text = message.content | default([]) | selectattr('text', 'defined') | map(attribute='text') | join -%}
{%- set flat.messages = flat.messages + [dict(message, content=text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_has_the_bytes_of_its_protobuf() {
        let sampler = Sampler::of(&Value::Null);
        let bytes = Metadata { start: Some(1), stops: vec![2, 300], sampler, cache: 64, template: Some("x".into()) }.bytes();
        let tokens =
            [&[0x0a, 5, 0x0a, 3, 0x0a, 1, 1][..], &[0x12, 5, 0x0a, 3, 0x0a, 1, 2], &[0x12, 6, 0x0a, 4, 0x0a, 2, 0xac, 2]];
        assert!(bytes.starts_with(&tokens.concat()), "{bytes:02x?}");
        assert!(bytes.ends_with(&[0x28, 64, 0x32, 2, 0x0a, 0, 0x3a, 1, b'x', 0x58, 0, 0x60, 0]), "{bytes:02x?}");
    }

    #[test]
    fn sampling_is_that_of_the_generation_configuration() {
        let said = |config| {
            let Sampler { top_k, top_p, temperature } = Sampler::of(&config);
            (top_k, top_p, temperature)
        };
        assert_eq!(said(json!({ "do_sample": true, "top_k": 20, "temperature": 0.5 })), (20, 1.0, 0.5));
        assert_eq!(said(json!({ "do_sample": true, "temperature": 0.0 })), (50, 1.0, 1.0));
        assert_eq!(said(json!({ "temperature": 0.5 })), (1, 1.0, 1.0), "greedy");
    }

    #[test]
    fn the_first_token_is_that_of_the_post_processor() {
        let template = json!({ "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [7], "tokens": ["<s>"] } } });
        assert_eq!(start(&json!({ "post_processor": template })), Some(7));
        assert_eq!(
            start(&json!({ "post_processor": { "type": "Sequence", "processors": [{ "type": "ByteLevel" }, template] } })),
            Some(7)
        );
        assert_eq!(start(&json!({ "post_processor": { "type": "ByteLevel" } })), None);
        assert_eq!(start(&json!({ "post_processor": null })), None);
    }

    #[test]
    fn a_template_reads_contents_in_parts() {
        let of = ChatTemplate::new(
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}",
            [("bos_token", "<s>"), ("eos_token", "</s>")],
        );
        let dialogue = json!([
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "hi" }, { "type": "text", "text": " there" }] },
        ]);
        let said = |starts| ChatTemplate::new(&template(&of, starts), []).render(&dialogue).unwrap();
        assert_eq!(said(false), "<s>[system]be brief</s>[user]hi there</s>");
        assert_eq!(said(true), "[system]be brief</s>[user]hi there</s>");
    }
}
