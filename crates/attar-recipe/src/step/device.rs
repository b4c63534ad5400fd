//! What steps for a device share: what they refuse, and whose fault it is.

use std::{num::NonZeroU64, path::PathBuf};

use attar_compile::{Compile, device::Device};

use super::kind::StepError;
use crate::{Error, ErrorKind, error::device_key, model::Working};

/// Tokens of a prompt that are planned in seconds; no model of today takes more.
const LONGEST: usize = 1 << 20;

/// A prompt is no longer than the model's context.
pub(super) fn check_prompt(seq: NonZeroU64, model: &Working) -> Result<(), StepError> {
    let longest = model.context.unwrap_or(LONGEST).min(LONGEST) as u64;
    if seq.get() <= longest {
        return Ok(());
    }
    let error = Error::recipe(format!("`seq` is {seq}: the model's context is {longest} tokens"));
    Err(StepError { key: Some("seq".into()), error })
}

/// The device of that name or file.
pub(super) fn named(device: &str) -> Result<Device, StepError> {
    Compile { device: device.into(), ..Compile::default() }.device().map_err(refused)
}

/// The files of the device that a step names; none if it cannot be read, which the plan says.
pub(super) fn files(device: &str) -> Vec<(String, PathBuf)> {
    let files = named(device).map(|device| device.files().to_vec()).unwrap_or_default();
    files.into_iter().map(|file| ("device".to_owned(), file)).collect()
}

/// What a device cannot run is a mistake of whoever chose the device, also where there is no step.
pub fn refused_by_device(error: attar_compile::Error) -> Error {
    refused(error).error
}

/// What a device cannot run is the recipe's fault, not the data's.
pub(super) fn refused(error: attar_compile::Error) -> StepError {
    if matches!(error, attar_compile::Error::Interrupted) {
        return Error::interrupted().into();
    }
    let key = device_key(&error).unwrap_or("kind");
    StepError { key: Some(key.into()), error: Error { kind: ErrorKind::Recipe, ..error.into() } }
}
