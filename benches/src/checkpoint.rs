//! Checkpoints of any shape with pseudo-random weights, for where the real thing is absent or not large enough.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Map, json};

use crate::Failure;

/// What makes one Llama larger than another.
pub(crate) struct Shape {
    /// `llama`, or `qwen2`, whose queries, keys and values have biases.
    pub(crate) kind: &'static str,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) vocabulary: usize,
    pub(crate) tied: bool,
}

/// Tensors in files: name and dimensions.
type Tensors = Vec<(String, Vec<usize>)>;

impl Shape {
    /// Bytes of all weights in bf16.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors().iter().map(|(_, dims)| 2 * dims.iter().product::<usize>() as u64).sum()
    }

    fn tensors(&self) -> Tensors {
        let Shape { hidden, intermediate, vocabulary, .. } = *self;
        let key = hidden / self.heads * self.key_heads;
        let mut all: Tensors = vec![("model.embed_tokens.weight".into(), vec![vocabulary, hidden])];
        for block in 0..self.blocks {
            let mut add = |name: &str, dims: &[usize]| all.push((format!("model.layers.{block}.{name}.weight"), dims.into()));
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[hidden, hidden]);
            add("self_attn.k_proj", &[key, hidden]);
            add("self_attn.v_proj", &[key, hidden]);
            add("self_attn.o_proj", &[hidden, hidden]);
            if self.kind == "qwen2" {
                let bias = |projection: &str, width| (format!("model.layers.{block}.self_attn.{projection}.bias"), vec![width]);
                all.extend([bias("q_proj", hidden), bias("k_proj", key), bias("v_proj", key)]);
            }
            let mut add = |name: &str, dims: &[usize]| all.push((format!("model.layers.{block}.{name}.weight"), dims.into()));
            add("post_attention_layernorm", &[hidden]);
            add("mlp.gate_proj", &[intermediate, hidden]);
            add("mlp.up_proj", &[intermediate, hidden]);
            add("mlp.down_proj", &[hidden, intermediate]);
        }
        all.push(("model.norm.weight".into(), vec![hidden]));
        if !self.tied {
            all.push(("lm_head.weight".into(), vec![vocabulary, hidden]));
        }
        all
    }

    /// Writes `config.json`, the index and so many shards.
    pub(crate) fn write(&self, folder: &Path, shards: usize) -> Result<(), Failure> {
        let config = json!({
            "architectures": [if self.kind == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": self.kind,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        });
        fs::write(folder.join("config.json"), config.to_string())?;
        let tensors = self.tensors();
        let mut noise = Noise::new();
        let mut index = Map::new();
        for (number, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
            write_shard(&folder.join(&name), part, &mut noise)?;
            index.extend(part.iter().map(|(tensor, _)| (tensor.clone(), name.clone().into())));
        }
        let index = json!({ "metadata": { "total_size": self.bytes() }, "weight_map": index });
        Ok(fs::write(folder.join("model.safetensors.index.json"), index.to_string())?)
    }
}

fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)], noise: &mut Noise) -> Result<(), Failure> {
    let mut end = 0;
    let mut header = Map::new();
    for (name, dims) in tensors {
        let start = end;
        end += 2 * dims.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": dims, "data_offsets": [start, end] }));
    }
    let header = serde_json::to_string(&header)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut bytes = vec![0; 1 << 20];
    while end > 0 {
        let part = &mut bytes[..end.min(1 << 20)];
        noise.fill(part);
        file.write_all(part)?;
        end -= part.len();
    }
    Ok(file.flush()?)
}

/// Numbers around zero, drawn from a table so that gigabytes take seconds. No two tensors are the same, or the store
/// would do the work once.
struct Noise {
    table: Vec<[u8; 2]>,
    state: u64,
}

impl Noise {
    fn new() -> Noise {
        let sum = |seed: u64| {
            let bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
            bits.to_le_bytes().iter().map(|byte| i32::from(*byte as i8)).sum::<i32>()
        };
        let table = (0..1 << 16).map(|seed| half::bf16::from_f32((sum(seed) as f32 + 0.5) * 1e-4).to_le_bytes()).collect();
        Noise { table, state: 1 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            let picks = self.state.to_le_bytes();
            for (value, pick) in chunk.chunks_exact_mut(2).zip(picks.chunks_exact(2)) {
                value.copy_from_slice(&self.table[usize::from(u16::from_le_bytes([pick[0], pick[1]]))]);
            }
        }
    }
}
