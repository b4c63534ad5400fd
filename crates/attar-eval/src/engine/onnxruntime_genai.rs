//! ONNX Runtime GenAI, through its Python package: it generates from the folders of target `onnx-genai`.

use super::kind::{Engine, Home, Mode, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "onnxruntime-genai",
    title: "ONNX Runtime GenAI",
    home: Home::Wheel(Package {
        name: "onnxruntime-genai",
        module: "onnxruntime_genai",
        folder: "",
        library: "onnxruntime-genai",
        needs: &["onnxruntime"],
        installer: None,
    }),
    pins: include_str!("../../engines/onnxruntime-genai.txt"),
    opens: &[Opens { target: "onnx-genai", file: "genai_config.json" }],
    modes: &[Mode::Exact, Mode::Default],
    devices: &["CPU"],
    worker: Worker::Python(include_str!("onnxruntime_genai.py")),
};
