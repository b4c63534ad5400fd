//! What a device can do besides multiplying weights. Planners read it and take only what there is.

use crate::{Error, Kernel, Program, Result};

/// What multiplies two activations, as attention does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// The array, like weights.
    #[default]
    Array,
    /// The elementwise unit, at [`crate::simulate::Elementwise::product`].
    Elementwise,
    /// Nothing.
    None,
}

impl Products {
    /// In the order of [`Products::NAMES`].
    pub(super) const ALL: [Products; 3] = [Products::Array, Products::Elementwise, Products::None];
    /// Their names in device files.
    pub(super) const NAMES: &[&str] = &["array", "elementwise", "none"];
    /// The same for messages.
    pub(super) const LISTED: &str = "`array`, `elementwise` or `none`";
}

/// How attention takes its softmax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Softmax {
    /// Over tiles of keys, with a maximum and a sum that are corrected from tile to tile.
    #[default]
    Online,
    /// Over all scores of a row at once, which are in SRAM until then.
    Whole,
}

impl Softmax {
    /// In the order of [`Softmax::NAMES`].
    pub(super) const ALL: [Softmax; 2] = [Softmax::Online, Softmax::Whole];
    /// Their names in device files.
    pub(super) const NAMES: &[&str] = &["online", "whole"];
    /// The same for messages.
    pub(super) const LISTED: &str = "`online` or `whole`";
}

/// What a device can do besides multiplying weights: everything, unless a file says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Can {
    /// What multiplies two activations.
    pub products: Products,
    /// Whether partial sums stay in SRAM between tiles of k.
    pub splits: bool,
    /// Whether a norm can be computed within the product that reads it.
    pub norm_inside: bool,
    /// How attention takes its softmax.
    pub softmax: Softmax,
    /// Bits that an int8 weight takes on its way to the array, 8 if weights move as they are stored.
    pub weights: f64,
}

impl Default for Can {
    fn default() -> Can {
        Can { products: Products::Array, splits: true, norm_inside: true, softmax: Softmax::Online, weights: 8.0 }
    }
}

impl Can {
    /// What tiles are multiples of in k for a product with `k` inputs on an array that takes `block` of them at a time: of all of k
    /// where no partial sums stay between tiles.
    pub fn depth(&self, block: u64, k: u64) -> u64 {
        if self.splits { block } else { k }
    }

    /// # Errors
    /// The first kernel of a program that the device cannot run.
    pub(crate) fn check(&self, program: &Program, device: &str) -> Result<()> {
        let attends = |kernel: &Kernel| matches!(kernel, Kernel::Attention(_));
        match program.kernels.iter().find(|(_, kernel)| attends(kernel) && self.products == Products::None) {
            Some((kernel, _)) => Err(Error::DeviceCannot { device: device.into(), key: "can.products", kernel: kernel.clone() }),
            None => Ok(()),
        }
    }

    /// The key that makes a kernel need more SRAM than on other devices, if one does.
    pub(crate) fn needs_room(&self, kernel: &Kernel) -> Option<&'static str> {
        match kernel.core() {
            Kernel::Linear(_) if !self.splits => Some("can.splits"),
            Kernel::Attention(_) if self.softmax == Softmax::Whole => Some("can.softmax"),
            _ => None,
        }
    }
}
