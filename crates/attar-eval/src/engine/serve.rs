//! The worker's side of the protocol, for engines that are a shared library.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    time::Instant,
};

use super::{
    kind::{Engine, Failure, Load, Session, Worker},
    protocol::{self, Reply, Request},
};
use crate::runner::likeliest;

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
    let mut session: Option<Box<dyn Session>> = None;
    while let Some((request, tokens)) = protocol::read::<Request, u32>(&mut input)? {
        if let Request::Time { output: scores, answer } = &request {
            match session
                .as_deref_mut()
                .ok_or("no model is open".into())
                .and_then(|session| timed(session, &tokens, scores, *answer))
            {
                Ok(times) => protocol::write(&mut output, &Reply::Timed, bytemuck::cast_slice(&times))?,
                Err(error) => protocol::write(&mut output, &Reply::Failed { message: error.to_string() }, &[])?,
            }
            continue;
        }
        let reply = answer(open, &mut session, request, &tokens);
        let (header, payload) = match &reply {
            Ok((header, values)) => (header.clone(), *values),
            Err(error) => (Reply::Failed { message: error.to_string() }, &[][..]),
        };
        protocol::write(&mut output, &header, bytemuck::cast_slice(payload))?;
    }
    Ok(())
}

/// Seconds that the tokens of an answer took.
fn timed(session: &mut (dyn Session + 'static), prompt: &[u32], output: &str, answer: usize) -> Result<Vec<f32>, Failure> {
    let mut last = Instant::now();
    session.feed(prompt, true)?;
    let mut at = prompt.len().saturating_sub(1);
    let mut times = Vec::with_capacity(answer);
    loop {
        let (row, _) = session.rows(output, at..at + 1)?;
        let token = likeliest(row);
        let now = Instant::now();
        times.push((now - last).as_secs_f32());
        last = now;
        if times.len() >= answer {
            return Ok(times);
        }
        session.feed(&[token], false)?;
        at = 0;
    }
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
        Request::Time { .. } => unreachable!("answered above"),
        Request::Rewind { length } => session.rewind(length).map(|()| (Reply::Fed, &[][..])),
        Request::Rows { output, start, end } => {
            let (values, width) = session.rows(&output, start..end)?;
            Ok((Reply::Rows { width }, values))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// An engine that computes nothing.
    struct Empty(Vec<f32>);

    impl Session for Empty {
        fn outputs(&self) -> Vec<String> {
            vec!["logits".into()]
        }

        fn feed(&mut self, _: &[u32], _: bool) -> Result<(), Failure> {
            Ok(())
        }

        fn rows(&mut self, _: &str, _: Range<usize>) -> Result<(&[f32], usize), Failure> {
            Ok((&self.0, self.0.len()))
        }
    }

    #[test]
    fn times_are_of_every_token() {
        let times = timed(&mut Empty(vec![0.0, 1.0]), &[1, 2, 3], "logits", 5).expect("nothing fails");
        assert!(times.len() == 5 && times.iter().all(|time| *time >= 0.0));
    }

    /// What taking times costs a token, with the vocabulary of SmolLM2: mostly the search for the likeliest token. A measurement, run by hand.
    #[test]
    #[ignore = "prints a time"]
    fn overhead() {
        let mut empty = Empty((0..49_152).map(|n| (n * 7919 % 1009) as f32).collect());
        let start = Instant::now();
        let times = timed(&mut empty, &[1, 2, 3], "logits", 10_000).expect("nothing fails");
        println!("{:.2} us a token", 1e6 * start.elapsed().as_secs_f64() / times.len() as f64);
    }
}
