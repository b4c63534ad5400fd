//! What the parent and an engine's worker say to each other, whatever language the worker is written in.
//!
//! The parent writes requests to the worker's standard input; the worker answers each, in order, on its standard output
//! and ends when the input does. Both ways a message is a frame:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the header in bytes, u32 |
//! | 8 | numbers in the payload, u64 |
//! | | the header: JSON, a [`Request`] or a [`Reply`] |
//! | | the payload: tokens as u32 in requests, values as f32 in replies |
//!
//! Both are processes of one machine, so numbers have the machine's byte order.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::kind::Load;
use crate::Prediction;

/// Bytes that no header of ours reaches: more is something else that writes to the pipe.
const LONGEST_HEADER: u32 = 1 << 16;

/// Numbers that no payload of ours reaches.
const LONGEST_PAYLOAD: u64 = 1 << 32;

/// From the parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Load the engine and a model.
    Open(Load),
    /// Run the tokens of the payload.
    Feed {
        /// As a new sequence; otherwise they continue the one that ran before.
        afresh: bool,
    },
    /// Forget the tokens of the sequence behind the first ones.
    Rewind {
        /// The tokens that stay.
        length: usize,
    },
    /// Run the prompt of the payload as a new sequence and write an answer of the likeliest tokens, whatever they are. Send the seconds that each took.
    Time {
        /// The output with the scores of tokens.
        output: String,
        /// Tokens of the answer, 1 or more.
        answer: usize,
    },
    /// Send rows of an output, for the tokens that were fed last.
    Rows {
        /// The output's name.
        output: String,
        /// The first row.
        start: usize,
        /// The row after the last.
        end: usize,
    },
}

/// From the worker: an answer to each request, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The model is loaded.
    Opened {
        /// Names of its outputs, without those that carry keys and values.
        outputs: Vec<String>,
        /// Whether it takes [`Request::Rewind`].
        #[serde(default)]
        rewinds: bool,
        /// What a compiler predicts of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predicted: Option<Box<Prediction>>,
    },
    /// The tokens have run, or are forgotten.
    Fed,
    /// The rows are the payload.
    Rows {
        /// Values per row.
        width: usize,
    },
    /// Seconds from the request to the first token of the answer, and from each to the next, are the payload.
    Timed,
    /// The request failed; the worker goes on.
    Failed {
        /// In the engine's words.
        message: String,
    },
}

/// Writes a frame and flushes.
pub(crate) fn write(to: &mut impl Write, header: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    to.write_all(&(header.len() as u32).to_ne_bytes())?;
    to.write_all(&((payload.len() / size_of::<u32>()) as u64).to_ne_bytes())?;
    to.write_all(&header)?;
    to.write_all(payload)?;
    to.flush()
}

/// Reads a frame; nothing, if the pipe ends before its first byte.
pub(crate) fn read<H: DeserializeOwned, N: bytemuck::Pod>(from: &mut impl Read) -> io::Result<Option<(H, Vec<N>)>> {
    let mut lengths = [0; 12];
    let found = fill(from, &mut lengths)?;
    if found == 0 {
        return Ok(None);
    }
    let (header, payload) = lengths.split_at(4);
    let header = u32::from_ne_bytes(header.try_into().expect("4 bytes"));
    let payload = u64::from_ne_bytes(payload.try_into().expect("8 bytes"));
    if found < lengths.len() || header > LONGEST_HEADER || payload > LONGEST_PAYLOAD {
        return Err(foreign(&lengths[..found]));
    }
    let mut text = vec![0; header as usize];
    from.read_exact(&mut text)?;
    let mut numbers = vec![N::zeroed(); payload as usize];
    let header = serde_json::from_slice(&text).map_err(|_| foreign(&text))?;
    from.read_exact(bytemuck::cast_slice_mut(&mut numbers))?;
    Ok(Some((header, numbers)))
}

fn foreign(bytes: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("{text:?}"))
}

/// Fills `buffer` as far as there is something to read.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let mut pipe = Vec::new();
        write(&mut pipe, &Reply::Rows { width: 2 }, bytemuck::cast_slice(&[1.5f32, -2.0])).unwrap();
        write(&mut pipe, &Reply::Fed, &[]).unwrap();
        let mut pipe = pipe.as_slice();
        assert_eq!(read(&mut pipe).unwrap(), Some((Reply::Rows { width: 2 }, vec![1.5f32, -2.0])));
        assert_eq!(read(&mut pipe).unwrap(), Some((Reply::Fed, Vec::<f32>::new())));
        assert_eq!(read::<Reply, f32>(&mut pipe).unwrap(), None);
    }

    #[test]
    fn other_text_on_the_pipe_is_quoted() {
        for text in ["usage: attar [OPTIONS]", "short"] {
            let error = read::<Reply, f32>(&mut text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(&text[..5]), "{error}");
        }
    }

    #[test]
    fn a_frame_that_breaks_off_is_an_error() {
        let mut pipe = Vec::new();
        write(&mut pipe, &Reply::Fed, &[0; 8]).unwrap();
        for cut in 12..pipe.len() {
            let error = read::<Reply, f32>(&mut &pipe[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
