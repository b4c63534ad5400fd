//! ONNX Runtime's QNN execution provider, through its Python package: graphs of target `qnn` on Hexagon's HTP, or on Qualcomm's library that computes as
//! that does, on x86-64.
//!
//! Nothing is left to the CPU: a node that the provider does not take is an error. It computes in f16 what is in floats, and has no other mode.

use super::kind::{Engine, Home, Mode, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "onnxruntime-qnn",
    title: "ONNX Runtime QNN",
    home: Home::Wheel(Package {
        name: "onnxruntime-qnn",
        module: "onnxruntime_qnn",
        folder: "",
        library: "onnxruntime_providers_qnn",
        needs: &["onnxruntime"],
        installer: None,
    }),
    pins: include_str!("../../engines/onnxruntime-qnn.txt"),
    opens: &[Opens { target: "qnn", file: "qnn.json" }],
    modes: &[Mode::Default],
    devices: &["HTP"],
    worker: Worker::Python(include_str!("onnxruntime_qnn.py")),
};
