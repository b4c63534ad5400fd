//! Checkpoints to break: safetensors as raw header and bytes, and made-up Llamas of any shape.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    ops::Range,
    path::Path,
};

use serde_json::{Value, json};

use crate::room::{Room, repository};

/// A safetensors file, taken apart without checking anything.
pub(crate) struct Raw {
    pub(crate) header: Value,
    pub(crate) data: Vec<u8>,
}

impl Raw {
    pub(crate) fn read(path: &Path) -> Raw {
        let bytes = fs::read(path).expect("the file is there");
        let (size, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(size.try_into().expect("8 bytes")) as usize);
        Raw { header: serde_json::from_slice(header).expect("headers are JSON"), data: data.to_vec() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = self.header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.data].concat()
    }

    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, self.bytes()).expect("room for it");
    }

    /// Where a tensor's bytes are.
    pub(crate) fn range(&self, name: &str) -> Range<usize> {
        let at = |i: usize| self.header[name]["data_offsets"][i].as_u64().expect("offsets are numbers") as usize;
        at(0)..at(1)
    }

    /// Puts one f32 into a tensor.
    pub(crate) fn poke(&mut self, name: &str, index: usize, value: f32) {
        let at = self.range(name).start + 4 * index;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Stores a tensor again, under another type and in other bytes, at the end.
    pub(crate) fn replace(&mut self, name: &str, dtype: &str, dims: &[usize], bytes: &[u8]) {
        let old = self.range(name);
        let removed = old.len();
        self.data.drain(old.clone());
        for (_, tensor) in self.header.as_object_mut().into_iter().flatten() {
            let offsets = tensor["data_offsets"].as_array().cloned().unwrap_or_default();
            if offsets.iter().any(|offset| offset.as_u64() > Some(old.start as u64)) {
                let moved = offsets
                    .iter()
                    .map(|o| o.as_u64().expect("a number") as usize)
                    .map(|o| if o > old.start { o - removed } else { o });
                tensor["data_offsets"] = moved.collect::<Vec<_>>().into();
            }
        }
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        self.header[name] = json!({ "dtype": dtype, "shape": dims, "data_offsets": [start, self.data.len()] });
    }
}

/// Copies `testdata/models/NAME` to the room's `model`.
pub(crate) fn copy(room: &Room, name: &str) {
    let (from, to) = (repository().join("testdata/models").join(name), room.path("model"));
    fs::create_dir_all(&to).expect("the room is writable");
    for entry in fs::read_dir(&from).expect("the model is there").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("room for it");
    }
}

/// Changes the room's `model/model.safetensors`.
pub(crate) fn edit(room: &Room, change: impl FnOnce(&mut Raw)) {
    let path = room.path("model/model.safetensors");
    let mut raw = Raw::read(&path);
    change(&mut raw);
    raw.write(&path);
}

/// Changes the room's `model/config.json`.
pub(crate) fn configure(room: &Room, key: &str, value: Value) {
    let mut config = room.json("model/config.json");
    config[key] = value;
    room.write("model/config.json", &config.to_string());
}

/// The shape of a made-up Llama in bf16.
#[derive(Clone, Copy)]
pub(crate) struct Llama {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) blocks: usize,
    pub(crate) vocabulary: usize,
    pub(crate) shards: usize,
}

impl Llama {
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.blocks, "num_attention_heads": self.hidden / 8,
            "num_key_value_heads": self.hidden / 8, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "tie_word_embeddings": true, "vocab_size": self.vocabulary,
        })
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, m) = (self.hidden, self.intermediate);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, h])];
        for block in 0..self.blocks {
            let matrices = [
                ("self_attn.q_proj", [h, h]),
                ("self_attn.k_proj", [h, h]),
                ("self_attn.v_proj", [h, h]),
                ("self_attn.o_proj", [h, h]),
                ("mlp.gate_proj", [m, h]),
                ("mlp.up_proj", [m, h]),
                ("mlp.down_proj", [h, m]),
            ];
            let name = |part: &str| format!("model.layers.{block}.{part}.weight");
            all.extend(matrices.map(|(part, dims)| (name(part), dims.to_vec())));
            all.extend(["input_layernorm", "post_attention_layernorm"].map(|part| (name(part), vec![h])));
        }
        all.push(("model.norm.weight".to_owned(), vec![h]));
        all
    }

    /// Writes config, shards and index. Returns the bytes of all weights.
    pub(crate) fn write(&self, folder: &Path) -> u64 {
        fs::create_dir_all(folder).expect("the room is writable");
        let create = |name: &str| File::create(folder.join(name)).expect("the room is writable");
        let put = |name: &str, value: Value| create(name).write_all(value.to_string().as_bytes()).expect("room for it");
        put("config.json", self.config());
        let (tensors, noise) = (self.tensors(), noise());
        let mut placed = serde_json::Map::new();
        for (i, tensors) in tensors.chunks(tensors.len().div_ceil(self.shards)).enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, self.shards);
            write_shard(create(&name), tensors, i, &noise);
            placed.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        }
        put("model.safetensors.index.json", json!({ "weight_map": placed }));
        tensors.iter().map(|(_, dims)| 2 * dims.iter().product::<usize>() as u64).sum()
    }
}

fn write_shard(file: File, tensors: &[(String, Vec<usize>)], shard: usize, noise: &[u8]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dims) in tensors {
        let start = end;
        end += 2 * dims.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": dims, "data_offsets": [start, end] }));
    }
    let header = Value::from(header).to_string();
    let mut to = BufWriter::new(file);
    let mut put = |bytes: &[u8]| to.write_all(bytes).expect("room for it");
    put(&(header.len() as u64).to_le_bytes());
    put(header.as_bytes());
    for (i, (_, dims)) in tensors.iter().enumerate() {
        // No two tensors begin at the same place of the noise: equal content would be quantized only once.
        let mut at = (64 * i + 16384 * shard) % noise.len();
        let mut left = 2 * dims.iter().product::<usize>();
        while left > 0 {
            let piece = &noise[at..noise.len().min(at + left)];
            put(piece);
            (left, at) = (left - piece.len(), 0);
        }
    }
}

/// A mebibyte of bf16 of moderate size.
fn noise() -> Vec<u8> {
    let mut random = Random(1);
    (0..1 << 19).flat_map(|_| bf16((random.next() as f32 / u32::MAX as f32 - 0.5) * 0.1)).collect()
}

fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

/// Knuth's 64-bit linear congruential generator (MMIX); the upper half of each state.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }
}
