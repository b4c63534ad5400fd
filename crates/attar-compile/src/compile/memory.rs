//! The weights and constants that all plans of a model read, each at its address, written block by block so that this machine
//! never holds more than one block.

use std::{
    collections::HashSet,
    io::{Read, Seek, SeekFrom, Write},
};

use attar_graph::Graph;
use attar_tensor::Source;

use super::Proven;
use crate::{
    Error, Result,
    convert::{Bind, Ranges, convert},
    device::Device,
    plan::{Placed, Space},
    program::Role,
    schedule::Image,
};

/// Everything that decides the bytes of weights and constants; states and intermediate results are not part of it.
#[derive(Clone, Debug)]
pub struct MemoryImage {
    bind: Bind,
    widths: Vec<u32>,
    fused: Graph,
    ranges: Ranges,
    image: Image,
}

impl MemoryImage {
    pub(super) fn new(bind: Bind, device: &Device, fused: Graph, ranges: Ranges, image: Image) -> MemoryImage {
        MemoryImage { bind, widths: device.numerics.weights.clone(), fused, ranges, image }
    }

    /// Size of the image in a memory: one past its last byte, or 0 if it is empty.
    pub fn bytes(&self, space: Space) -> u64 {
        self.constants(space).map(|tensor| tensor.address + tensor.bytes()).max().unwrap_or(0)
    }

    fn constants(&self, space: Space) -> impl Iterator<Item = &Placed> {
        self.image.tensors().filter(move |tensor| tensor.space == space && lasting(tensor))
    }

    /// Writes the image of a memory from its first byte on, with zeros where plans have states.
    ///
    /// # Errors
    /// If a weight cannot be read or the image cannot be written.
    pub fn write(&self, source: &dyn Source, space: Space, to: &mut dyn Write) -> Result<()> {
        let (mut written, mut done) = (0, HashSet::new());
        let wanted = self.constants(space).count();
        let mut block = 0;
        while done.len() < wanted {
            for (address, bytes) in self.part(block, source, space, &mut done)? {
                let gap = address.checked_sub(written).ok_or(Error::ImageOrder { address, written })?;
                let failed = |source| Error::ImageWrite { source };
                std::io::copy(&mut std::io::repeat(0).take(gap), to).map_err(failed)?;
                to.write_all(&bytes).map_err(failed)?;
                written = address + bytes.len() as u64;
            }
            block += 1;
        }
        Ok(())
    }

    /// The tensors of a block (of the last block with the head) that are not `done` yet, ordered by address.
    fn part(&self, block: usize, source: &dyn Source, space: Space, done: &mut HashSet<String>) -> Result<Vec<(u64, Vec<u8>)>> {
        // After the last block there is nothing to convert, which is an error.
        let bind = Bind { blocks: [block, block + 1], ..self.bind };
        let converted = convert(&self.fused, source, &self.ranges, bind, &self.widths)?;
        let memory = converted.memory.expect("numbers were asked for");
        let mut found = Vec::new();
        for (tensor, data) in converted.program.tensors.iter().zip(memory.all()) {
            let placed = self.image.find(&tensor.name, [tensor.rows, tensor.columns]);
            let Some(placed) = placed.filter(|placed| placed.space == space && lasting(placed)) else { continue };
            if done.insert(tensor.name.clone()) {
                found.push((placed.address, placed.stored(data)));
            }
        }
        found.sort_by_key(|(address, _)| *address);
        Ok(found)
    }
}

fn lasting(tensor: &Placed) -> bool {
    matches!(tensor.role, Role::Weight | Role::Constant)
}

impl Proven {
    /// Name of the first weight or constant of this proof that a written image does not contain, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn missing_in(&self, space: Space, memory: &mut (impl Read + Seek)) -> std::io::Result<Option<String>> {
        let tensors = self.schedule.plan.tensors.iter().zip(self.proof.memory.all());
        for (tensor, data) in tensors.filter(|(tensor, _)| tensor.space == space && lasting(tensor)) {
            let wanted = tensor.stored(data);
            let mut found = vec![0; wanted.len()];
            memory.seek(SeekFrom::Start(tensor.address))?;
            memory.read_exact(&mut found)?;
            if found != wanted {
                return Ok(Some(tensor.name.clone()));
            }
        }
        Ok(None)
    }
}
