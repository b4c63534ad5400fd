//! OpenVINO, through its Python package.
//!
//! A worker in Python and not a binding of the C API: OpenVINO renumbered its element types between releases, so a
//! compiled binding is right for some of them only, and the wheel (which brings numpy) is how most people have it.

use super::kind::{Engine, Home, Mode, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "openvino",
    title: "OpenVINO",
    home: Home::Wheel(Package {
        name: "openvino",
        module: "openvino",
        folder: "libs",
        library: "openvino",
        needs: &[],
        installer: None,
    }),
    pins: include_str!("../../engines/openvino.txt"),
    opens: &[Opens { target: "openvino", file: "openvino_model.xml" }, Opens { target: "onnx", file: "model.onnx" }],
    modes: &[Mode::Exact, Mode::Default],
    devices: &["CPU", "GPU", "NPU"],
    worker: Worker::Python(include_str!("openvino.py")),
};
