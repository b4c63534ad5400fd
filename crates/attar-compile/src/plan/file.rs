//! Files of plans and of proofs: magic, version, digest of the rest, then the content in postcard's encoding.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Plan;
use crate::{Error, Memory, Program, Result};

/// Magic bytes of a plan file.
pub const MAGIC: &[u8; 8] = b"attarpln";

/// Magic bytes of a proof file.
const PROOF: &[u8; 8] = b"attarprf";

/// The format version that this tool reads and writes.
pub const VERSION: u32 = 4;

const HEADER: usize = MAGIC.len() + 4 + 32;

/// A plan with everything that it takes to check it: the program that it should compute, and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The program that the plan should compute.
    pub program: Program,
    /// Weights, constants, inputs and states before the run.
    pub memory: Memory,
}

impl Plan {
    /// Its file, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(MAGIC, self)
    }

    /// Reads the bytes of a file. The content is not trusted: [`crate::simulate`] checks every access.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan> {
        let plan: Plan = from_bytes(MAGIC, bytes)?;
        match plan.tensors.iter().find(|tensor| !tensor.is_possible()) {
            Some(tensor) => Err(Error::PlanMalformed { why: format!("the tensor `{}` has an impossible size", tensor.name) }),
            None => Ok(plan),
        }
    }
}

impl Proof {
    /// Its file, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(PROOF, self)
    }

    /// Reads the bytes of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Proof> {
        from_bytes(PROOF, bytes)
    }
}

fn to_bytes(magic: &[u8; 8], content: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_allocvec(content).expect("nothing in it that postcard lacks");
    let digest = blake3::hash(&body);
    [magic.as_slice(), &VERSION.to_le_bytes(), digest.as_bytes(), &body].concat()
}

fn from_bytes<T: DeserializeOwned>(magic: &'static [u8; 8], bytes: &[u8]) -> Result<T> {
    if !bytes.starts_with(magic) {
        return Err(Error::NoPlan { magic: std::str::from_utf8(magic).expect("letters") });
    }
    if bytes.len() < HEADER {
        return Err(Error::PlanTruncated { found: bytes.len(), wanted: HEADER });
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(Error::PlanVersion { found: version, wanted: VERSION });
    }
    let body = &bytes[HEADER..];
    if blake3::hash(body).as_bytes() != &bytes[12..HEADER] {
        return Err(Error::PlanDamaged);
    }
    postcard::from_bytes(body).map_err(|source| Error::PlanMalformed { why: source.to_string() })
}
