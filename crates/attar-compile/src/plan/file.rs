//! The file of a plan: magic, version, digest of the rest, then the plan in postcard's encoding.

use super::Plan;
use crate::{Error, Result};

/// How a plan file begins.
pub const MAGIC: &[u8; 8] = b"attarpln";

/// Which form of plan this tool writes, and the only one it reads.
pub const VERSION: u32 = 1;

const HEADER: usize = MAGIC.len() + 4 + 32;

impl Plan {
    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("a plan has no value that postcard lacks");
        let digest = blake3::hash(&body);
        [MAGIC.as_slice(), &VERSION.to_le_bytes(), digest.as_bytes(), &body].concat()
    }

    /// From the bytes of a file. What it says of itself is not believed: [`crate::simulate`] checks every access.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan> {
        if !bytes.starts_with(MAGIC) {
            return Err(Error::NoPlan);
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
            return Err(Error::PlanDamaged { bytes: bytes.len() });
        }
        postcard::from_bytes(body).map_err(|source| Error::PlanMalformed { why: source.to_string() })
    }
}
