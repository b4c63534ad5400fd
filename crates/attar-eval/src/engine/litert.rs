//! LiteRT, through its Python package: it runs models, and those in bundles for LiteRT-LM.
//!
//! Not LiteRT-LM itself, which returns text and no logits; both run the same kernels. They round what products with codes read to int8, and have no
//! other mode.

use super::kind::{Engine, Home, Mode, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "litert",
    title: "LiteRT",
    home: Home::Wheel(Package {
        name: "ai-edge-litert",
        module: "ai_edge_litert",
        folder: "",
        library: "LiteRt",
        needs: &[],
        installer: None,
    }),
    pins: include_str!("../../engines/litert.txt"),
    opens: &[
        Opens { target: "litert-lm", file: "model.litertlm" },
        Opens { target: "tflite", file: "model.tflite" },
        Opens { target: "tflite", file: "decode.tflite" },
    ],
    modes: &[Mode::Default],
    devices: &["CPU"],
    worker: Worker::Python(include_str!("litert.py")),
};
