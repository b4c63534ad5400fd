//! Files of plans and of proofs: magic, version, digest of the rest, then the content in postcard's encoding.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Plan;
use crate::{
    Error, Memory, Program, Result, TensorId,
    program::Role,
    simulate::{Simulation, Violation, prove_and_keep},
};

/// Magic bytes of a plan file.
pub const MAGIC: &[u8; 8] = b"attarpln";

/// Magic bytes of a proof file.
const PROOF: &[u8; 8] = b"attarprf";

/// The format version that this tool reads and writes.
pub const VERSION: u32 = 8;

const HEADER: usize = MAGIC.len() + 4 + 32;

/// A plan with everything that it takes to check it: the program that it should compute, and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The program that the plan should compute.
    pub program: Program,
    /// Weights, constants, inputs and states before the run.
    pub memory: Memory,
    /// What outputs and states hold after it, row by row: another version of attar has to compute the same.
    pub results: Vec<(TensorId, Vec<i32>)>,
}

impl Plan {
    /// Its file, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(MAGIC, self)
    }

    /// Reads the bytes of a file. The content is not trusted: [`crate::simulate`] checks every access.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan> {
        let plan: Plan = from_bytes(MAGIC, bytes)?;
        if !plan.rates.are_possible() {
            return Err(Error::PlanMalformed { why: "its rates are those of no device".into() });
        }
        match plan.tensors.iter().find(|tensor| !tensor.is_possible()) {
            Some(tensor) => Err(Error::PlanMalformed { why: format!("the tensor `{}` has an impossible size", tensor.name) }),
            None => Ok(plan),
        }
    }
}

impl Proof {
    /// A proof with these numbers before the run and these after it.
    pub fn new(program: Program, memory: Memory, after: &Memory) -> Proof {
        let lasting = (0..).zip(&program.tensors).filter(|(_, tensor)| matches!(tensor.role, Role::Output | Role::State));
        let results = lasting.map(|(id, _)| (TensorId(id), after.get(TensorId(id)).numbers().to_vec())).collect();
        Proof { program, memory, results }
    }

    /// Proves the plan, as [`crate::simulate::prove`] does, and compares the results with those of the file.
    ///
    /// # Errors
    /// The first number that differs; results of a tensor that does not exist or has another size.
    pub fn prove(&self, plan: &Plan) -> Result<Simulation> {
        let (simulation, after) = prove_and_keep(&self.program, plan, &plan.rates, &self.memory)?;
        for (id, wanted) in &self.results {
            let tensor =
                self.program.tensors.get(id.0 as usize).filter(|tensor| tensor.rows * tensor.columns == wanted.len() as u64);
            let Some(tensor) = tensor else {
                return Err(Error::PlanMalformed {
                    why: format!("there are results of {} numbers of no tensor of that size", wanted.len()),
                });
            };
            let found = after.get(*id).numbers();
            if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
                let (row, column) = (at as u64 / tensor.columns, at as u64 % tensor.columns);
                let what = Violation::Differs { tensor: tensor.name.clone(), row, column, found: found[at], wanted: wanted[at] };
                return Err(Error::Violation { call: plan.title.clone(), statement: "the result of the file".into(), what });
            }
        }
        Ok(simulation)
    }

    /// Its file, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(PROOF, self)
    }

    /// Reads the bytes of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Proof> {
        let proof: Proof = from_bytes(PROOF, bytes)?;
        match proof.memory.misfit(&proof.program) {
            Some(tensor) => Err(Error::PlanMalformed { why: format!("it has other numbers than `{tensor}` has room for") }),
            None => Ok(proof),
        }
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
