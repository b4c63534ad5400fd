//! Intel's NPU compiler, which lies in OpenVINO's wheel for Windows and runs under Wine, without a device.
//!
//! It is installed on request only: `cargo xtask engines openvino-npu`.

use super::kind::{Engine, Home, Opens, Package, Worker};

pub(super) static ENGINE: Engine = Engine {
    name: "openvino-npu",
    title: "Intel's NPU compiler",
    home: Home::Wheel(Package {
        name: "openvino",
        module: "openvino",
        folder: "libs",
        library: "openvino_intel_npu_compiler",
        needs: &[],
        installer: Some("cargo xtask engines openvino-npu"),
    }),
    pins: include_str!("../../engines/openvino-npu/wheel.txt"),
    opens: &[Opens { target: "openvino", file: "openvino_model.xml" }],
    modes: &[],
    devices: &["4000", "5010", "5020", "3720"],
    worker: Worker::Python(include_str!("openvino_npu.py")),
};
