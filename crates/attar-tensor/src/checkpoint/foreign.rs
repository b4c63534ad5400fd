//! Files that people give and attar does not read, each by name with the way out, and names of models on a hub.

use std::path::Path;

use crate::Error;

/// A format by the end of its files' names.
struct Format {
    ends: &'static [&'static str],
    kind: &'static str,
    hint: &'static str,
}

const WRITTEN: &str =
    "attar writes this format and does not read it: give the Hugging Face folder or the GGUF file that the model came from";
const PICKLE: &str = "load it once in Python and write safetensors: `model.save_pretrained(FOLDER)` of transformers; a pickle can run code when it is loaded";
const OTHER: &str = "convert it to a Hugging Face folder with safetensors: `save_pretrained(FOLDER)` of transformers writes one";

static FORMATS: &[Format] = &[
    Format { ends: &[".onnx", ".ort"], kind: "an ONNX model", hint: WRITTEN },
    Format { ends: &[".tflite", ".litertlm", ".task"], kind: "a LiteRT model", hint: WRITTEN },
    Format { ends: &[".mlmodel", ".mlpackage", ".mlmodelc"], kind: "a Core ML model", hint: WRITTEN },
    Format { ends: &[".bin", ".pt", ".pth", ".ckpt", ".pkl"], kind: "a PyTorch pickle", hint: PICKLE },
    Format { ends: &[".h5", ".keras", ".pb"], kind: "a TensorFlow model", hint: OTHER },
    Format { ends: &[".msgpack"], kind: "a Flax checkpoint", hint: OTHER },
    Format { ends: &[".npz", ".npy"], kind: "a NumPy archive", hint: OTHER },
    Format {
        ends: &[".ggml", ".ggmf", ".ggjt"],
        kind: "a GGML file, the format before GGUF",
        hint: "convert it with llama.cpp, or fetch the model as GGUF",
    },
    Format {
        ends: &[".zip", ".tar", ".tar.gz", ".tgz", ".7z"],
        kind: "an archive",
        hint: "unpack it, and give the folder that comes out",
    },
    Format {
        ends: &[".index.json", "config.json", "tokenizer.json"],
        kind: "one file of a Hugging Face folder",
        hint: "give the folder that it lies in",
    },
    Format {
        ends: &["adapter_model.safetensors", "adapter_config.json"],
        kind: "an adapter (LoRA), not a model",
        hint: "merge it into its base model first: `merge_and_unload()` of the peft library, then `save_pretrained(FOLDER)`",
    },
];

/// The error for a file or folder whose name tells a format that is not read.
pub(super) fn by_name(path: &Path) -> Option<Error> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let format = FORMATS.iter().rev().find(|format| format.ends.iter().any(|end| name.ends_with(end)))?;
    Some(Error::Foreign { path: path.into(), kind: format.kind, hint: format.hint })
}

/// The error for a path that does not exist and looks like the name of a model on a hub.
pub(super) fn hub(path: &Path) -> Option<Error> {
    let name = path.to_str()?;
    let prefixes = ["hf://", "https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "https://hf.co/"];
    let explicit = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    let id = explicit.unwrap_or(name).trim_end_matches('/');
    let parts: Vec<&str> = id.split('/').collect();
    let word = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let two = parts.len() == 2
        && parts.iter().all(word)
        && !Path::new(parts[0]).exists()
        && !id.ends_with(".gguf")
        && !id.ends_with(".safetensors");
    let id = parts.iter().take(2).copied().collect::<Vec<_>>().join("/");
    (explicit.is_some() || two).then(|| Error::Hub { name: name.into(), id })
}
