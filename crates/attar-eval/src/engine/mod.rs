//! The child's side of [`crate::OnnxRuntime`]: holds the engine and answers over pipes.

mod onnx;
pub(crate) mod protocol;

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use onnx::Session;
use protocol::{Reply, Request};

/// Answers requests until `input` ends. The process that hosts the engine calls this with its standard input and output
/// and does nothing else.
pub fn serve(input: impl Read, output: impl Write) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(input), BufWriter::new(output));
    let mut session = None;
    while let Some((request, tokens)) = protocol::read::<Request, u32>(&mut input)? {
        let reply = answer(&mut session, request, &tokens);
        let (header, payload) = match &reply {
            Ok((header, logits)) => (header.clone(), *logits),
            Err(error) => (Reply::Failed { message: error.to_string() }, &[][..]),
        };
        protocol::write(&mut output, &header, bytemuck::cast_slice(payload))?;
    }
    Ok(())
}

fn answer<'s>(session: &'s mut Option<Session>, request: Request, tokens: &[u32]) -> Result<(Reply, &'s [f32]), onnx::Error> {
    match (request, session) {
        (Request::Open { library, model, exact, threads }, session) => {
            *session = Some(Session::open(Path::new(&library), Path::new(&model), exact, threads)?);
            Ok((Reply::Opened, &[]))
        }
        (_, None) => Err(onnx::Error::NotOpen),
        (Request::Feed { afresh }, Some(session)) => {
            session.feed(tokens, afresh)?;
            Ok((Reply::Fed, &[]))
        }
        (Request::Rows { start, end }, Some(session)) => {
            let (logits, vocabulary) = session.rows(start..end)?;
            Ok((Reply::Rows { vocabulary }, logits))
        }
    }
}
