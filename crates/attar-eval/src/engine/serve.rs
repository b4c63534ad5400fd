//! The worker's side of the protocol, for engines that are a shared library.

use std::io::{self, BufReader, BufWriter, Read, Write};

use super::{
    kind::{Engine, Failure, Load, Session, Worker},
    protocol::{self, Reply, Request},
};

type Open = fn(&Load) -> Result<Box<dyn Session>, Failure>;

/// Answers requests for an engine until `input` ends. The process that hosts the engine calls this with its standard
/// input and output and does nothing else. Engines whose worker is a script are not served here.
pub fn serve(engine: &Engine, input: impl Read, output: impl Write) -> io::Result<()> {
    match engine.worker {
        Worker::Library(open) => answer_all(open, input, output),
        Worker::Python(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} has a worker of its own", engine.title)))
        }
    }
}

fn answer_all(open: Open, input: impl Read, output: impl Write) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(input), BufWriter::new(output));
    let mut session = None;
    while let Some((request, tokens)) = protocol::read::<Request, u32>(&mut input)? {
        let reply = answer(open, &mut session, request, &tokens);
        let (header, payload) = match &reply {
            Ok((header, values)) => (header.clone(), *values),
            Err(error) => (Reply::Failed { message: error.to_string() }, &[][..]),
        };
        protocol::write(&mut output, &header, bytemuck::cast_slice(payload))?;
    }
    Ok(())
}

fn answer<'s>(
    open: Open,
    session: &'s mut Option<Box<dyn Session>>,
    request: Request,
    tokens: &[u32],
) -> Result<(Reply, &'s [f32]), Failure> {
    if let Request::Open(load) = &request {
        let session = session.insert(open(load)?);
        return Ok((Reply::Opened { outputs: session.outputs(), rewinds: session.rewinds(), predicted: None }, &[]));
    }
    let session = session.as_mut().ok_or("no model is open")?;
    match request {
        Request::Open(_) => unreachable!("answered above"),
        Request::Feed { afresh } => session.feed(tokens, afresh).map(|()| (Reply::Fed, &[][..])),
        Request::Rewind { length } => session.rewind(length).map(|()| (Reply::Fed, &[][..])),
        Request::Rows { output, start, end } => {
            let (values, width) = session.rows(&output, start..end)?;
            Ok((Reply::Rows { width }, values))
        }
    }
}
